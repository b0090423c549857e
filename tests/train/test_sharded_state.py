"""The optimizer's state cut along the data axis: the same updates, less memory, and it moves to other meshes."""

import functools
import pathlib
from typing import Any

import jax
import pytest
import tiny
from test_checkpoints import iterator, run

from mmclip_jax import sharding
from mmclip_jax.checkpoints import Checkpoints, abstract_like
from mmclip_jax.config import transformer
from mmclip_jax.plan import memory
from mmclip_jax.state import TrainState
from mmclip_jax.train import optim, step

pytestmark = pytest.mark.compiles
STEPS = 2


def config(shard_optimizer: bool, everything: bool = False) -> Any:
    """The contrastive loss alone, or all objectives, with masks at random: those by the response hang on rounding."""
    settings = tiny.config(
        mesh__shard_optimizer=shard_optimizer,
        objective__attmim__weight=float(everything),
        objective__attmim__strategy="random",
        objective__entmlm__weight=float(everything),
        optimizer__peak_lr=1e-3,
        optimizer__warmup_share=0.0,
        optimizer__ema=0.9,
    )
    # Sizes that eight devices divide.
    settings.model.update({"image": transformer(16, 2, 2), "text": transformer(32, 2, 4, length=11, vocab_size=64)})
    settings.model.update({"image_decoder": transformer(16, 1, 2), "text_decoder": transformer(16, 1, 2)})
    return settings


def parts(mesh: jax.sharding.Mesh, settings: Any) -> tuple[Any, Any, Any]:
    """(first state, abstract state, update), compiled for the mesh."""
    model, params = tiny.model_and_params(settings)
    optimizer = optim.make_optimizer(settings.optimizer, STEPS)
    schedule = optim.learning_rate(settings.optimizer, STEPS)
    shapes = jax.eval_shape(functools.partial(step.init_state, model, settings, optimizer))
    places = sharding.tree_shardings(shapes, mesh, settings.mesh.shard_optimizer)
    first = tiny.jit(functools.partial(step.init_state, model, settings, optimizer))()
    state = jax.device_put(TrainState(first.step, params, first.opt_state, params, first.guard), places)
    update = step.make_train_step(model, settings, optimizer, schedule, tiny.MASK_ID)
    return state, abstract_like(shapes, places), tiny.jit(update, out_shardings=(places, sharding.replicated(mesh)))


def updated(mesh: jax.sharding.Mesh, settings: Any) -> TrainState:
    state, _, update = parts(mesh, settings)
    with jax.set_mesh(mesh):
        for number in range(STEPS):
            batch = {"paired": tiny.rows(16, 2 * number), "unpaired": tiny.rows(8, 2 * number + 1)}
            state, metrics = update(state, sharding.to_devices(batch, mesh))
    assert float(metrics["finite"]) == 1
    return state


@pytest.fixture(scope="module")
def one_device() -> TrainState:
    return updated(sharding.make_mesh(1, jax.devices()[:1]), config(False))


def held(state: Any) -> int:
    """Bytes on the first device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("fsdp", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_eight_devices_update_as_one_does(one_device: TrainState, fsdp: int, tmp_path: pathlib.Path) -> None:
    mesh = sharding.make_mesh(fsdp)
    state = updated(mesh, config(True))
    assert held(state) < 0.2 * held(one_device)
    settings = config(True)
    settings.mesh.fsdp = fsdp
    counters = 6 * 4  # the step, two of the optimizer, three of the guard
    assert held(state) - counters == memory.state_bytes(state.params, settings, 8, shard_optimizer=True)
    for name in ("params", "ema", "opt_state"):
        difference = tiny.largest_difference(sharding.on_host(getattr(state, name)), getattr(one_device, name))
        assert difference < 1e-5, name
    if fsdp > 1:
        return
    # It goes on with four devices, and with one that holds everything.
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(state, iterator(STEPS), run())
    checkpoints.close()
    for count, shard_optimizer in ((4, True), (1, False)):
        other = sharding.make_mesh(1, jax.devices()[:count])
        abstract = abstract_like(state, sharding.tree_shardings(state, other, shard_optimizer))
        checkpoints = Checkpoints(tmp_path, 1)
        restored = checkpoints.restore_latest(abstract, iterator())
        checkpoints.close()
        assert restored is not None
        assert tiny.largest_difference(sharding.on_host(restored.params), sharding.on_host(state.params)) == 0
        assert tiny.largest_difference(sharding.on_host(restored.opt_state), sharding.on_host(state.opt_state)) == 0


def test_specs_add_the_data_axis_to_the_largest_axis_that_it_divides() -> None:
    mesh = sharding.make_mesh(2)  # data 4, fsdp 2

    def spec(path: str, *shape: int) -> tuple[Any, ...]:
        return tuple(sharding.parameter_spec(path, shape, mesh, over_data=True))

    assert spec("a/kernel", 12, 16, 64) == (None, "fsdp", "data")
    assert spec("a/kernel", 12, 64, 10) == ("data", "fsdp", None)
    assert spec("a/bias", 6) == (None,)
    assert spec("a/scale", 8) == ("data",)
    assert spec("a/step") == ()
    assert tuple(sharding.parameter_spec("a/kernel", (12, 16, 64), mesh)) == (None, "fsdp", None)


@pytest.mark.slow
def test_all_objectives_update_on_eight_devices_as_on_one() -> None:
    whole = updated(sharding.make_mesh(1, jax.devices()[:1]), config(False, everything=True))
    cut = updated(sharding.make_mesh(1), config(True, everything=True))
    for name in ("params", "ema", "opt_state"):
        difference = tiny.largest_difference(
            sharding.on_host(getattr(cut, name)), sharding.on_host(getattr(whole, name))
        )
        assert difference < 1e-5, name


def test_the_compiled_step_gathers_a_parameter_once() -> None:
    settings, mesh = config(True), sharding.make_mesh(1)
    _, abstract, update = parts(mesh, settings)
    place = sharding.batch_sharding(mesh)
    rows = {"paired": tiny.rows(16, 0), "unpaired": tiny.rows(8, 1)}
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), rows)
    with jax.set_mesh(mesh):
        text = update.lower(abstract, batch).compile().as_text()
    kernel = abstract.params["image_encoder"]["transformer"]["layers"]["mlp_in"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) != kernel.shape
    whole = f"f32[{','.join(map(str, kernel.shape))}]"
    gathers = [line for line in text.splitlines() if " all-gather(" in line and f" {whole}" in line.split(" all-")[0]]
    assert len(gathers) == 1, gathers
