"""Rows and parameters over eight devices: nothing moves that need not, and the result is that of one device."""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from mmclip_jax import sharding
from mmclip_jax.models.encoders.text import TextTransformer
from mmclip_jax.train import step

pytestmark = pytest.mark.compiles

MESHES = {"1x1": (1, 1), "8x1": (8, 1), "4x2": (8, 2), "2x4": (8, 4)}
STEP = 3
MARGIN = 1e-4


def mesh_of(name: str) -> jax.sharding.Mesh:
    devices, fsdp = MESHES[name]
    return sharding.make_mesh(fsdp, jax.devices()[:devices])


# ---------------------------------------------------------------------------------------------------------------------
# Rows


@pytest.mark.parametrize("name", MESHES)
def test_joining_keeps_every_row_once_and_splitting_undoes_it(name: str) -> None:
    first, second = np.arange(16 * 3).reshape(16, 3), 1000 + np.arange(8 * 3).reshape(8, 3)
    mesh = mesh_of(name)
    with jax.set_mesh(mesh):
        rows = sharding.batch_sharding(mesh)
        joined = jax.jit(sharding.join_rows)(*jax.device_put((first, second), rows))
        assert joined.sharding.is_equivalent_to(rows, 2)
        parts = jax.jit(lambda x: sharding.split_rows(x, 16, 8))(joined)
        # Each device still holds its own rows of both parts.
        owner = {shard.device: np.asarray(shard.data) for shard in joined.addressable_shards}
        for part in (first, second):
            for shard in jax.device_put(part, rows).addressable_shards:
                assert {tuple(row) for row in np.asarray(shard.data)} <= {tuple(row) for row in owner[shard.device]}
    assert sorted(map(tuple, np.asarray(joined))) == sorted(map(tuple, np.concatenate([first, second])))
    np.testing.assert_array_equal(parts[0], first)
    np.testing.assert_array_equal(parts[1], second)


@pytest.mark.parametrize("name", MESHES)
def test_chunks_spread_over_all_devices_and_come_back_in_order(name: str) -> None:
    x = np.arange(32 * 3).reshape(32, 3)
    mesh = mesh_of(name)
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, sharding.batch_sharding(mesh))
        chunks = np.asarray(jax.jit(lambda x: sharding.chunk_rows(x, 2))(placed))
        back = jax.jit(lambda x: sharding.unchunk_rows(sharding.chunk_rows(x, 2)))(placed)
    assert chunks.shape == (2, 16, 3)
    np.testing.assert_array_equal(back, x)
    per_device = 32 // mesh.size
    for chunk in range(2):
        for device in range(mesh.size):
            held = chunks[chunk].reshape(mesh.size, -1, 3)[device]
            own = x[device * per_device : (device + 1) * per_device]
            assert {tuple(row) for row in held} <= {tuple(row) for row in own}


def test_rows_that_do_not_divide_are_refused() -> None:
    with jax.set_mesh(mesh_of("8x1")):
        with pytest.raises(ValueError, match="12 rows"):
            jax.eval_shape(sharding.join_rows, jnp.zeros((16, 2)), jnp.zeros((12, 2)))
        with pytest.raises(ValueError, match="24 rows"):
            jax.eval_shape(lambda x: sharding.chunk_rows(x, 2), jnp.zeros((24, 2)))
    with pytest.raises(ValueError, match="fsdp=3"):
        sharding.make_mesh(3)


def test_outside_a_mesh_everything_is_the_identity() -> None:
    x = jnp.arange(6.0).reshape(3, 2)
    for function in (sharding.shard_rows, sharding.replicate):
        np.testing.assert_array_equal(function(x), x)
    np.testing.assert_array_equal(sharding.join_rows(x, x + 9), jnp.concatenate([x, x + 9]))
    assert sharding.row_shards() == 1


@pytest.mark.parametrize("name", ["8x1", "4x2", "2x4"])
def test_parameters_are_cut_along_fsdp_only(name: str) -> None:
    mesh, fsdp = mesh_of(name), MESHES[name][1]
    _, params = tiny.model_and_params(tiny.config())
    shardings = sharding.tree_shardings(params, mesh)
    cut = 0
    for (path, leaf), place in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(shardings), strict=True):
        shard = place.shard_shape(leaf.shape)
        kept = math.prod(leaf.shape) // math.prod(shard)
        assert kept in (1, fsdp), path
        assert "data" not in jax.tree.leaves(tuple(place.spec))
        cut += leaf.size if kept > 1 or fsdp == 1 else 0
    # Nearly everything is in matrices, and all of these divide.
    assert cut > 0.8 * sum(leaf.size for leaf in jax.tree.leaves(params))


def test_the_optimizers_moments_lie_where_their_parameters_do() -> None:
    from mmclip_jax.train import optim

    config, mesh = tiny.config(), mesh_of("4x2")
    model, params = tiny.model_and_params(config)
    optimizer = optim.make_optimizer(config.optimizer, 10)
    shapes = jax.eval_shape(functools.partial(step.init_state, model, config, optimizer))
    placed = sharding.tree_shardings(shapes, mesh)
    of_params = jax.tree.leaves(sharding.tree_shardings(params, mesh))
    moments = [s for s in jax.tree.leaves(placed.opt_state) if s.spec != PartitionSpec()]
    assert [s.spec for s in moments] == 2 * [s.spec for s in of_params if s.spec != PartitionSpec()]
    assert jax.tree.leaves(placed.ema) == of_params == jax.tree.leaves(placed.params)


# ---------------------------------------------------------------------------------------------------------------------
# What the compiled step says to other devices

_COLLECTIVE = re.compile(
    r"= (\(?.*?\)?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast|"
    r"ragged-all-to-all)(?:-start)?\("
)
_SHAPE = re.compile(r"([a-z]+[0-9]*)\[([0-9,]*)\]")


def collectives(text: str | None) -> list[tuple[str, str, tuple[int, ...]]]:
    """(operation, dtype, shape) of every array that a collective of this HLO text gives."""
    found = []
    for shapes, operation in _COLLECTIVE.findall(text or ""):
        for dtype, shape in _SHAPE.findall(shapes):
            found.append((operation, dtype, tuple(int(n) for n in shape.split(",") if n)))
    return found


def parameter_shapes(params: Any, mesh: jax.sharding.Mesh) -> set[tuple[int, ...]]:
    """Whole and sharded shapes of the parameters, of their single layers, and of these transposed."""
    shapes: set[tuple[int, ...]] = set()
    places = jax.tree.leaves(sharding.tree_shardings(params, mesh))
    for leaf, place in zip(jax.tree.leaves(params), places, strict=True):
        for shape in (leaf.shape, place.shard_shape(leaf.shape)):
            shapes |= {shape, shape[1:], (1, *shape[1:])}
    return shapes | {shape[::-1] for shape in shapes}


def forbidden(text: str | None, config: ConfigDict, params: Any, mesh: jax.sharding.Mesh) -> list[Any]:
    """The collectives that docs/method.md does not allow."""
    rows = config.data.batch_paired + config.data.batch_unpaired
    drawn = config.objective.local.tokens
    embeddings = {("f32", (rows, tiny.EMBED)), ("f32", (rows, drawn, tiny.EMBED))}
    ids = {("s32", (rows, 2)), ("s8", (rows, tiny.KINDS)), ("s32", (rows, 1)), ("s32", (rows,)), ("s32", (rows, drawn))}
    flags = {(dtype, shape) for dtype in ("pred", "f32") for shape in ((rows,), (rows, 1), (1, rows))}
    # Of the local loss: the drawn tokens of all rows, each with its sums over the images, and which of them are there.
    tokens = {("f32", (rows * drawn, tiny.EMBED)), ("f32", (rows * drawn,))}
    flags |= {("pred", (rows, drawn))}
    weights = {("f32", shape) for shape in parameter_shapes(params, mesh)}
    per_device = {("f32", (rows // mesh.size, tiny.EMBED))}
    scalars = {("f32", ()), ("s32", ())}
    fsdp = mesh.shape["fsdp"] > 1
    allowed = {
        "all-gather": embeddings | ids | flags | (weights if fsdp else set()),
        "all-reduce": embeddings | tokens | weights | scalars,
        "reduce-scatter": embeddings | per_device | weights,
    }
    if config.objective.contrastive.chunk > 0:  # the rows of a device, in whole chunks, go round a ring
        chunk = config.objective.contrastive.chunk
        held = -(-rows // mesh.size // chunk) * chunk
        ids_there = {("s32", (held, 2)), ("s32", (held,)), ("pred", (held,))}
        allowed["collective-permute"] = {("f32", (held, tiny.EMBED))} | ids_there
    return [
        (operation, dtype, shape)
        for operation, dtype, shape in collectives(text)
        if (dtype, shape) not in allowed.get(operation, set())
    ]


def step_config(accumulate: int = 1, chunk: int = -1) -> ConfigDict:
    return tiny.config(
        data__batch_paired=32,
        data__batch_unpaired=16,
        objective__local__weight=0.5,
        objective__attmim__hint=0.3,
        optimizer__accumulate=accumulate,
        objective__contrastive__chunk=chunk,
    )


@functools.cache
def model_and_params() -> Any:
    return tiny.model_and_params(step_config())


def responses_and_masks(params: Any, batch: Any) -> Any:
    return tiny.responses_and_masks(model_and_params()[0], step_config(), params, jnp.int32(STEP), batch)


@functools.cache
def batch_with_margin() -> Any:
    compute = functools.partial(tiny.jit(responses_and_masks), model_and_params()[1])
    return tiny.batch_with_margin(step_config(), compute, MARGIN)


@functools.cache
def ran(name: str, accumulate: int, chunk: int = -1) -> tuple[Any, str]:
    """(((loss, metrics), gradients), HLO) of the loss and its gradients on a mesh."""
    model, params = model_and_params()
    batch, config = batch_with_margin(), step_config(accumulate, chunk)
    compiled, placed, placed_batch = tiny.compile_on(mesh_of(name), model, config, params, batch)
    return jax.device_get(compiled(placed, jnp.int32(STEP), placed_batch)), compiled.as_text()


def test_masks_and_draws_of_a_row_are_those_of_one_device() -> None:
    batch, params = batch_with_margin(), model_and_params()[1]
    expected = jax.device_get(tiny.jit(responses_and_masks)(params, batch))
    mesh = mesh_of("4x2")
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding.tree_shardings(params, mesh))
        got = tiny.jit(responses_and_masks)(placed, jax.device_put(batch, sharding.batch_sharding(mesh)))
        got = jax.device_get(got)
    for part in batch:
        np.testing.assert_allclose(got[part].pop("response"), expected[part].pop("response"), atol=MARGIN / 10)
        assert tiny.largest_difference(got[part], expected[part]) == 0


RING = 4  # rows a chunk, of the 6 on each of 8 devices: a tail of 2
CASES = [
    pytest.param(*case, marks=pytest.mark.slow)
    for case in (("4x2", 1, -1), ("8x1", 1, -1), ("2x4", 1, -1), ("8x1", 2, -1), ("4x2", 2, -1), ("4x2", 1, RING))
]


@pytest.mark.parametrize(("name", "accumulate", "chunk"), CASES)
def test_loss_and_gradients_are_those_of_one_device(name: str, accumulate: int, chunk: int) -> None:
    ((expected, expected_metrics), expected_gradients), _ = ran("1x1", 1)
    ((loss, metrics), gradients), _ = ran(name, accumulate, chunk)
    assert float(loss) == pytest.approx(float(expected), abs=1e-5)
    assert tiny.largest_difference(metrics, expected_metrics) < 1e-5
    assert tiny.largest_difference(gradients, expected_gradients) < 1e-5
    assert min(np.abs(leaf).max() for leaf in jax.tree.leaves(expected_gradients["image_encoder"])) > 1e-6


@pytest.mark.parametrize(("name", "accumulate", "chunk"), CASES)
def test_the_step_talks_about_embeddings_and_parameters_only(name: str, accumulate: int, chunk: int) -> None:
    _, text = ran(name, accumulate, chunk)
    params = model_and_params()[1]
    found = set(forbidden(text, step_config(accumulate, chunk), params, mesh_of(name)))
    assert not found, f"collectives that the method does not allow: {sorted(found)}"
    kinds = {operation for operation, _, _ in collectives(text)}
    assert "all-reduce" in kinds or "reduce-scatter" in kinds
    gathered = {shape for operation, _, shape in collectives(text) if operation == "all-gather"}
    whole = {(48, tiny.EMBED), (48, 2)}
    assert whole <= gathered if chunk < 0 else whole.isdisjoint(gathered)
    assert ("collective-permute" in kinds) == (chunk > 0)


@pytest.mark.parametrize("name", ["8x1", "4x2", "2x4"])
@pytest.mark.parametrize("rows", [16, 64])
def test_words_are_looked_up_where_their_row_lies(name: str, rows: int) -> None:
    """A table that is cut along fsdp invites XLA to send the rows' tokens and features around instead."""
    module = TextTransformer(vocab_size=211, length=13, width=20, depth=1, heads=5, mlp_dim=36)
    mesh = mesh_of(name)
    tokens = np.ones((rows, 13), np.int32)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), tokens, tokens > 0))

    def loss(variables: Any, tokens: jax.Array) -> jax.Array:
        return jnp.square(module.apply(variables, tokens, tokens > 0)[0]).sum()

    with jax.set_mesh(mesh):
        places = sharding.tree_shardings(shapes, mesh)
        variables = jax.device_put(jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes), places)
        compiled = tiny.jit(jax.grad(loss), out_shardings=places).lower(
            variables, jax.device_put(tokens, sharding.batch_sharding(mesh))
        )
        found = set(forbidden(compiled.compile().as_text(), step_config(), shapes, mesh))
    assert not found, f"collectives that the method does not allow: {sorted(found)}"


def test_one_device_talks_to_nobody() -> None:
    assert collectives(ran("1x1", 1)[1]) == []


def test_the_check_itself_sees_what_must_not_happen() -> None:
    """Parts joined by a plain concatenation move rows between devices; gathered tokens are seen as such."""
    mesh, config = mesh_of("8x1"), step_config()
    params = model_and_params()[1]
    rows = sharding.batch_sharding(mesh)
    parts = jax.device_put((np.zeros((32, 11), np.int32), np.zeros((16, 11), np.int32)), rows)
    with jax.set_mesh(mesh):
        moved = jax.jit(lambda a, b: jnp.concatenate([a, b]), out_shardings=rows).lower(*parts).compile()
        gathered = jax.jit(sharding.replicate).lower(parts[0]).compile()
        fine = jax.jit(sharding.join_rows, out_shardings=rows).lower(*parts).compile()
    assert forbidden(moved.as_text(), config, params, mesh)
    assert forbidden(gathered.as_text(), config, params, mesh) == [("all-gather", "s32", (32, 11))]
    assert collectives(fine.as_text()) == []
