"""Every file under configs/: it loads with each of its arguments, its size is pinned, its step lowers."""

import functools
import itertools
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import tiny
from conftest import ROOT
from ml_collections import ConfigDict

from mmclip_jax import check, sharding
from mmclip_jax import config as config_lib
from mmclip_jax.data import batch as batch_lib
from mmclip_jax.errors import UserError
from mmclip_jax.models.mmclip import build_model, init_params
from mmclip_jax.train import optim, step

pytestmark = pytest.mark.compiles

# Parameters with a vocabulary of VOCAB pieces (the tokenizer's own size is data). A change here is a change of the
# model: if it is meant, write the new number and a line in CHANGELOG.md.
VOCAB = 4096
PARAMETERS = {
    ("demo", ""): 1_473_858,
    ("demo", "runlocal"): 242_674,
    ("mmclip_vitb16", ""): 211_544_834,
    ("mmclip_vitb16", "runlocal"): 695_682,
    ("real_small", ""): 1_493_922,
    ("real_small", "some/folder"): 1_493_922,
    ("real_small", "runlocal"): 261_562,
}
QUICK_TO_LOWER = (("demo", "runlocal"), ("mmclip_vitb16", ""))
CASES = [pytest.param(*case, id=":".join(case)) for case in PARAMETERS]


def sized(name: str, argument: str) -> ConfigDict:
    config = tiny.load_config(name, argument)
    config.model.text.vocab_size = config.model.text.vocab_size or VOCAB
    return config


def by_formula(model: ConfigDict) -> int:
    """The size of the model from its settings, part by part."""

    def dense(inputs: int, outputs: int, bias: bool = True) -> int:
        return inputs * outputs + bias * outputs

    def norm(width: int) -> int:
        return 2 * width

    def attention(width: int, context: int) -> int:
        return 2 * dense(width, width) + dense(context, width, bias=False) + dense(context, width)

    def layers(part: ConfigDict, crossing: bool) -> int:
        width = part.width
        block = norm(width) + attention(width, width) + crossing * (norm(width) + attention(width, width))
        block += norm(width) + dense(width, part.mlp_dim) + dense(part.mlp_dim, width)
        return part.depth * block + norm(width)

    image, text, pixels = model.image, model.text, model.patch_size**2
    patches = (model.image_size // model.patch_size) ** 2
    if model.stem == "conv":
        channels = [1] + [image.width >> (stage - 1) for stage in range(int(math.log2(model.patch_size)), 0, -1)]
        stem = sum(9 * a * b + b + norm(b) for a, b in itertools.pairwise(channels)) + dense(image.width, image.width)
    else:
        stem = dense(pixels, image.width)
    encoders = stem + patches * image.width + layers(image, False)
    encoders += (text.vocab_size + text.length) * text.width + layers(text, False)
    projections = 2 * (image.width + text.width) * model.embed_dim
    decoder = model.image_decoder
    decoders = dense(image.width, decoder.width) + 2 * dense(text.width, decoder.width) + decoder.width
    decoders += patches * decoder.width + layers(decoder, True) + dense(decoder.width, pixels)
    decoder = model.text_decoder
    decoders += dense(text.width, decoder.width) + dense(image.width, decoder.width) + text.length * decoder.width
    decoders += layers(decoder, True) + dense(decoder.width, text.width)
    return encoders + projections + decoders + 2  # the logit scale and bias


def test_every_file_is_listed_here() -> None:
    files = {path.stem for path in (ROOT / "configs").glob("*.py")} - {"__init__"}
    assert files == {name for name, _ in PARAMETERS}


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_it_loads_with_known_settings_and_passes_its_own_check(name: str, argument: str) -> None:
    config = tiny.load_config(name, argument)
    default = config_lib.default_config()

    def keys(part: Any) -> Any:
        return {key: keys(value) for key, value in part.items()} if hasattr(part, "items") else type(part)

    assert keys(config) == keys(default)  # no setting is new, none is missing, none changed its type
    check.check_config(config, 1)
    assert json.loads(config.to_json())["train"]["steps"] > 0


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_its_number_of_parameters_is_pinned(name: str, argument: str) -> None:
    config = sized(name, argument)
    model = build_model(config.model)
    shapes = jax.eval_shape(lambda: init_params(model, config.model, 0))
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    assert size == by_formula(config.model)
    assert size == PARAMETERS[name, argument]


@pytest.mark.parametrize("name", ["demo", "mmclip_vitb16"])
def test_an_unknown_argument_is_refused_by_name(name: str) -> None:
    with pytest.raises(UserError, match="runlocl"):
        tiny.load_config(name, "runlocl")


def test_the_folder_of_real_small_is_its_argument() -> None:
    assert all(path.startswith("some/folder/") for path in tiny.load_config("real_small", "some/folder").data.train)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        pytest.param(*case, id=":".join(case), marks=() if case in QUICK_TO_LOWER else pytest.mark.slow)
        for case in PARAMETERS
        if case != ("real_small", "some/folder")  # the same model and step as without
    ],
)
def test_its_train_step_lowers_on_eight_devices(name: str, argument: str) -> None:
    config = sized(name, argument)
    check.check_config(config, 8)
    model = build_model(config.model)
    optimizer = optim.make_optimizer(config.optimizer, config.train.steps)
    schedule = optim.learning_rate(config.optimizer, config.train.steps)
    train_step = step.make_train_step(model, config, optimizer, schedule, mask_id=2)
    mesh = sharding.make_mesh(2)
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(functools.partial(step.init_state, model, config, optimizer))
        places = sharding.tree_shardings(shapes, mesh)
        rows = sharding.batch_sharding(mesh)
        batch = {
            part: {name: jax.ShapeDtypeStruct(*field, sharding=rows) for name, field in fields.items()}
            for part, fields in batch_lib.shapes(config).items()
        }
        state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, places)
        jitted = jax.jit(train_step, donate_argnums=0, out_shardings=(places, sharding.replicated(mesh)))
        lowered = jitted.lower(state, batch)
    after, metrics = lowered.out_info
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    assert {"loss", "contrastive/loss", "attmim/loss", "entmlm/loss", "finite", "gradient_norm"} <= set(metrics)


def test_the_paper_scale_recipe_is_the_one_of_the_method() -> None:
    config = tiny.load_config("mmclip_vitb16", "")
    assert (config.model.image.width, config.model.image.depth, config.model.patch_size) == (768, 12, 16)
    assert (config.model.image_decoder.width, config.model.image_decoder.depth) == (512, 4)
    assert config.model.text_decoder.depth == 4
    assert (config.model.image_size, config.model.text.length) == (224, 128)
    assert (config.data.batch_paired, config.data.batch_unpaired) == (768, 256)
    optimizer = config.optimizer
    assert (optimizer.peak_lr, optimizer.warmup_share, optimizer.clip, optimizer.ema) == (1e-4, 0.05, 1.0, 0.999)
    assert (optimizer.weight_decay, optimizer.b1, optimizer.b2, optimizer.eps) == (0.05, 0.9, 0.98, 1e-6)
    objective = config.objective
    assert (objective.attmim.weight, objective.entmlm.weight) == (1.0, 1.0)
    assert (objective.attmim.mask_ratio, objective.attmim.hint, objective.attmim.temperature) == (0.5, 0.1, 0.1)
    assert (objective.attmim.mask_at, objective.attmim.random_share) == ("features", 0.1)
    assert (objective.entmlm.probability, objective.entmlm.min_share) == (0.5, 0.15)
    assert (config.data.bridge, config.data.max_negated, config.data.sentence_subset) == (0.25, 2, 0.5)
