"""A model of a few thousand parameters and batches for it; axis sizes differ so that a swapped axis cannot pass."""

import importlib.util
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mmclip_jax import sharding
from mmclip_jax.config import default_config, transformer
from mmclip_jax.data.batch import DTYPES, Batch, Row, has_negatives
from mmclip_jax.models import inputs, masking
from mmclip_jax.models.mmclip import MMCLIP, build_model, init_params
from mmclip_jax.objectives import attmim
from mmclip_jax.objectives.rows import row_key_data
from mmclip_jax.state import TrainState
from mmclip_jax.train import step

VOCAB, MASK_ID, KINDS = 53, 2, 5
PATCHES, LENGTH, EMBED = 25, 11, 7
# Compiling is most of what these tests cost, and the arrays are tiny: generate code that is quick to make.
QUICK: dict[str, Any] = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def config(**changes: Any) -> ConfigDict:
    """changes: dotted keys with "__", e.g. objective__attmim__hint=0.3."""
    out = default_config()
    out.model.update(
        {
            "image_size": 20,
            "patch_size": 4,
            "embed_dim": EMBED,
            "dtype": "float32",
            "remat": False,
            "unroll": False,
            "image": transformer(12, 2, 3, 20),
            "text": transformer(20, 2, 5, 36, length=LENGTH, vocab_size=VOCAB),
            "image_decoder": transformer(8, 1, 2, 24),
            "text_decoder": transformer(16, 1, 4, 44),
        }
    )
    out.objective.attmim.random_share = 0.0
    out.objective.entmlm.slots = 5
    out.data.update({"batch_paired": 16, "batch_unpaired": 8})
    out.train.steps = 100
    for name, value in changes.items():
        *path, last = name.split("__")
        part = out
        for key in path:
            part = part[key]
        part[last] = value
    return out


def load_config(name: str, argument: str = "") -> ConfigDict:
    """get_config(argument) of configs/NAME.py."""
    path = pathlib.Path(__file__).resolve().parents[1] / "configs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"configs_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument) if argument else module.get_config()


def rows(count: int, seed: int) -> Row:
    """One part of a batch: texts of 4..L tokens with entities of 1..3 tokens, some of them affirmed."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, VOCAB, (count, LENGTH)).astype(np.int32)
    entity = np.zeros((count, LENGTH), np.int32)
    affirmed = np.zeros((count, LENGTH), bool)
    for row in range(count):
        length = rng.integers(4, LENGTH + 1)
        tokens[row, length:] = 0
        place, number = int(rng.integers(0, 3)), 0
        while place < length:
            size = int(rng.integers(1, 4))
            number += 1
            entity[row, place : min(place + size, length)] = number
            affirmed[row, place : min(place + size, length)] = rng.random() < 0.6
            place += size + int(rng.integers(1, 4))
    drawn = {
        "image": rng.integers(0, 256, (count, 20, 20, 1)),
        "tokens": tokens,
        "entity": entity,
        "affirmed": affirmed,
        "text_id": rng.integers(0, 2**31 - 1, (count, 2)),
        "stated": rng.integers(-1, 2, (count, KINDS)),
        "source": np.full(count, seed % 2),
        "known": rng.integers(-1, 2, (count, KINDS)),
    }
    return {name: np.asarray(values, DTYPES[name]) for name, values in drawn.items()}


def batch(config: ConfigDict, seed: int = 0) -> Batch:
    parts = {
        "paired": rows(config.data.batch_paired, 2 * seed),
        "unpaired": rows(config.data.batch_unpaired, 2 * seed + 1),
    }
    if has_negatives(config):  # the text of another row, and none of the first
        for part in parts.values():
            part["negative"] = np.roll(part["tokens"], 1, axis=0)
            part["negative"][:1] = 0
    # Some texts recur, within a part and across the parts.
    parts["unpaired"]["text_id"][1] = parts["unpaired"]["text_id"][0]
    parts["paired"]["text_id"][2, 1] = parts["unpaired"]["text_id"][0, 1]
    return {name: part for name, part in parts.items() if len(part["tokens"])}


def random_params(model: MMCLIP, config: ConfigDict, seed: int = 0) -> Any:
    """Parameters of the shapes that init_params gives, drawn by NumPy: nothing is compiled, no bias is zero."""
    shapes = jax.eval_shape(lambda: init_params(model, config.model, 0))
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        center = {"scale": 1.0, "log_logit_scale": np.log(1 / 0.07), "logit_bias": -10.0}.get(name, 0.0)
        spread = {
            "kernel": leaf.shape[-2] ** -0.5 if len(leaf.shape) > 1 else 1.0,
            "log_logit_scale": 0,
            "logit_bias": 0,
        }
        return jnp.asarray(rng.normal(center, spread.get(name, 0.3), leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def model_and_params(config: ConfigDict, seed: int = 0) -> tuple[MMCLIP, Any]:
    model = build_model(config.model)
    return model, random_params(model, config, seed)


def save_run(folder: pathlib.Path, numbers: Sequence[int], manifest: dict[str, Any] | None = None) -> pathlib.Path:
    """A workdir with checkpoints of these steps: the demo's model at its smallest, random parameters.

    The average, which is what loads, differs from the parameters. manifest: the record of a training.
    """
    import grain

    from mmclip_jax.checkpoints import Checkpoints, run_record
    from mmclip_jax.text.tokenizer import load_tokenizer
    from mmclip_jax.train import optim

    config = load_config("demo", "runlocal")
    tokenizer = load_tokenizer()
    config.model.text.vocab_size = tokenizer.vocab_size
    model = build_model(config.model)
    optimizer = optim.make_optimizer(config.optimizer, 10)
    checkpoints = Checkpoints(folder, keep=5)
    run = run_record(config, tokenizer.model_bytes, manifest or {"exposure": {"sources": {}}})
    for number in numbers:
        params, ema = (random_params(model, config, seed) for seed in (number, 100 + number))
        state = TrainState(jnp.int32(number), params, optimizer.init(params), ema)
        checkpoints.save(state, iter(grain.MapDataset.range(10).to_iter_dataset()), run)
    checkpoints.close()
    return folder


def responses_and_masks(model: MMCLIP, config: ConfigDict, params: Any, number: jax.Array, batch: Any) -> Any:
    """For each part (response, masked patches, slots of masked tokens), by the step's own keys."""
    out = {}
    for name, part in batch.items():
        valid = part["tokens"] != 0

        def apply(method: str, *arguments: Any) -> Any:
            return model.apply({"params": params}, *arguments, method=method)

        keys = row_key_data(config.seed, number, name, len(valid))
        patches, _ = apply("encode_image", inputs.standardize(inputs.pixels(part["image"])))
        weights = masking.token_weights(part["affirmed"], valid)
        response = apply("response", patches, apply("encode_text", part["tokens"]), weights, "similarity", 0.1)
        masked, _ = attmim.masked_patches(response, keys, config.objective.attmim, jnp.bool_(False))
        slots = masking.select_masked_tokens(
            part["entity"], valid, keys, probability=0.5, min_share=0.15, slots=5, strategy="entity"
        )
        out[name] = {"response": response, "masked": masked, "slots": slots, "keys": keys}
    return out


def batch_with_margin(config: ConfigDict, compute: Any, margin: float, seed: int = 0) -> Any:
    """Rows whose responses at place K and K+1 differ by more than the margin: there the selection is continuous.

    compute: batch -> what responses_and_masks gives.
    """
    pools = {"paired": rows(96, 2 * seed), "unpaired": rows(96, 2 * seed + 1)}
    chosen: dict[str, dict[str, np.ndarray]] = {}
    for name, part in compute(pools).items():
        ranked = np.sort(np.asarray(part["response"]), axis=1)[:, ::-1]
        kept = int(config.objective.attmim.mask_ratio * PATCHES)
        clear = np.flatnonzero(ranked[:, kept - 1] - ranked[:, kept] > margin)[: config.data[f"batch_{name}"]]
        assert len(clear) == config.data[f"batch_{name}"]
        chosen[name] = {field: values[clear] for field, values in pools[name].items()}
    chosen["unpaired"]["text_id"][:4] = chosen["paired"]["text_id"][:1]  # texts recur, across the parts too
    return chosen


def loss_and_gradients(model: MMCLIP, config: ConfigDict) -> Any:
    """The function (params, step, batch) -> ((loss, metrics), gradients), to be jitted by the caller."""

    def loss(params: Any, number: jax.Array, batch: Any) -> Any:
        return step.compute_loss(model, config, MASK_ID, params, number, batch)

    return jax.value_and_grad(loss, has_aux=True)


def compile_on(
    mesh: jax.sharding.Mesh, model: MMCLIP, config: ConfigDict, params: Any, batch: Any
) -> tuple[Any, Any, Any]:
    """(compiled loss_and_gradients, params and batch placed on the mesh)."""
    with jax.set_mesh(mesh):
        shardings = sharding.tree_shardings(params, mesh)
        placed = jax.device_put(params, shardings), jax.device_put(batch, sharding.batch_sharding(mesh))
        whole = sharding.replicated(mesh)
        function = jax.jit(loss_and_gradients(model, config), out_shardings=((whole, whole), shardings))
        return function.lower(placed[0], jnp.int32(3), placed[1]).compile(QUICK), *placed


def jit(function: Any, **options: Any) -> Any:
    return jax.jit(function, compiler_options=QUICK, **options)


def largest_difference(a: Any, b: Any) -> float:
    """Over all leaves of two trees of the same structure."""
    return max(
        float(np.max(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)), initial=0.0))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def saved_run(workdir: pathlib.Path, data: pathlib.Path) -> pathlib.Path:
    """The workdir of a run on a built data set, with a checkpoint of step 5 that has learnt nothing."""
    from mmclip_jax.checkpoints import Checkpoints, run_record
    from mmclip_jax.text.tokenizer import load_tokenizer
    from mmclip_jax.train.manifest import make_manifest

    tokenizer = load_tokenizer(None)
    settings = load_config("demo", "runlocal")
    settings.data.train = (str(data),)
    settings.train.compiler_options = "xla_tpu_of_another_machine=true"  # which must not reach what is compiled here
    settings.model.text.vocab_size = tokenizer.vocab_size
    settings.model.image.depth = settings.model.text.depth = 1
    params = random_params(build_model(settings.model), settings)
    checkpoints = Checkpoints(workdir, 1)
    state = TrainState(jnp.int32(5), params, (), params)

    class Nothing:
        def get_state(self) -> dict[str, int]:
            return {}

    checkpoints.save(state, Nothing(), run_record(settings, tokenizer.model_bytes, make_manifest(settings)))
    checkpoints.close()
    return workdir
