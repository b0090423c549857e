"""The formula against what XLA counts in the compiled program, and utilisation by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
import tiny
from ml_collections import ConfigDict

from mmclip_jax import flops
from mmclip_jax.config import transformer
from mmclip_jax.errors import UserError
from mmclip_jax.models.mmclip import build_model, init_params

pytestmark = pytest.mark.compiles

_OFF = {"objective__attmim__weight": 0.0, "objective__entmlm__weight": 0.0}


def _config(**changes: Any) -> ConfigDict:
    """Unrolled, and wide enough for the matrix products to be nearly everything."""
    config = tiny.config()
    config.model.update(
        {
            "unroll": True,
            "embed_dim": 96,
            "image": transformer(192, 2, 3, 512),
            "text": transformer(128, 2, 2, 640, length=tiny.LENGTH, vocab_size=tiny.VOCAB),
            "image_decoder": transformer(160, 1, 2, 448),
            "text_decoder": transformer(224, 1, 2, 320),
        }
    )
    config.data.update({"batch_paired": 6, "batch_unpaired": 4})
    for name, value in changes.items():
        *path, last = name.split("__")
        part = config
        for key in path:
            part = part[key]
        part[last] = value
    return config


def _counted_by_xla(config: ConfigDict) -> float:
    """Of loss and gradient."""
    model = build_model(config.model)
    params = jax.eval_shape(lambda: init_params(model, config.model, 0))
    function = jax.jit(tiny.loss_and_gradients(model, config))
    compiled = function.lower(params, jnp.int32(3), tiny.batch(config)).compile(tiny.QUICK)
    counted = compiled.cost_analysis()
    assert counted is not None
    return float(counted["flops"])


@pytest.fixture(scope="module")
def contrastive_only() -> tuple[float, float]:
    """(by formula, by XLA)."""
    config = _config(**_OFF)
    return sum(flops.train_step_flops(config).values()), _counted_by_xla(config)


def test_both_encoders_and_the_contrastive_loss(contrastive_only):
    formula, xla = contrastive_only
    assert formula == pytest.approx(xla, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("component", "changes"),
    [
        ("attmim", _OFF | {"objective__attmim__weight": 1.0}),
        ("attmim", _OFF | {"objective__attmim__weight": 1.0, "objective__attmim__response": "cross_attention"}),
        ("attmim", _OFF | {"objective__attmim__weight": 1.0, "objective__attmim__mask_at": "input"}),
        ("entmlm", _OFF | {"objective__entmlm__weight": 1.0}),
        ("local", _OFF | {"objective__local__weight": 1.0}),
        ("hard_negatives", _OFF | {"objective__hard_negatives__weight": 1.0}),
        ("image_encoder", _OFF | {"model__pool": "map"}),
        ("image_encoder", _OFF | {"model__pool": "cls"}),
        ("image_encoder", _OFF | {"model__stem": "conv"}),
        ("image_encoder", _OFF | {"model__image_head__hidden": 499}),
        ("text_encoder", _OFF | {"model__text_head__hidden": 499}),
        ("recompute", _OFF | {"model__remat": True}),
    ],
    ids=[
        "attmim",
        "attmim-cross",
        "attmim-input",
        "entmlm",
        "local",
        "hard-negatives",
        "map",
        "cls",
        "conv",
        "head",
        "text-head",
        "remat",
    ],
)
def test_each_component_is_what_xla_counts_more_with_it(contrastive_only, component, changes):
    base = flops.train_step_flops(_config(**_OFF))
    config = _config(**changes)
    with_it = flops.train_step_flops(config)
    assert {name for name in with_it if with_it[name] != base[name]} == {component}
    more = _counted_by_xla(config) - contrastive_only[1]
    assert with_it[component] - base[component] == pytest.approx(more, rel=0.1)


@pytest.mark.slow
def test_the_full_step():
    config = _config()
    assert sum(flops.train_step_flops(config).values()) == pytest.approx(_counted_by_xla(config), rel=0.05)


def test_accumulation_recomputes_everything_but_the_contrast():
    config = _config(**_OFF)
    once = flops.train_step_flops(config)
    config.optimizer.accumulate = 2
    chunked = flops.train_step_flops(config)
    # A forward pass is a third of forward and backward, but for the patch embedding's missing gradient (a half).
    patches, pixels, width, rows = tiny.PATCHES, 16, 192, 10
    embedding = 2 * rows * patches * pixels * width
    encoders = once["image_encoder"] + once["text_encoder"]
    assert chunked["recompute"] == pytest.approx((encoders + embedding) / 3)
    assert {k: v for k, v in chunked.items() if k != "recompute"} == {k: v for k, v in once.items() if k != "recompute"}
    assert flops.model_flops(chunked) == flops.model_flops(once)


def test_flops_grow_with_the_batch_and_the_contrast_with_its_square():
    config = _config()
    single = flops.train_step_flops(config)
    config.data.update({"batch_paired": 12, "batch_unpaired": 8})
    double = flops.train_step_flops(config)
    assert double["image_encoder"] == 2 * single["image_encoder"]
    assert double["contrastive"] == 4 * single["contrastive"]


def test_entmlm_has_paired_rows_only():
    config = _config()
    before = flops.train_step_flops(config)["entmlm"]
    config.data.batch_unpaired = 40
    assert flops.train_step_flops(config)["entmlm"] == before
    config.data.batch_paired = 0
    assert flops.train_step_flops(config)["entmlm"] == 0


def test_an_unknown_vocabulary_is_refused():
    config = _config()
    config.model.text.vocab_size = 0
    with pytest.raises(UserError, match="vocab_size"):
        flops.train_step_flops(config)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
    ],
)
def test_peaks_by_the_names_that_jax_gives(kind, peak):
    assert flops.peak_flops(kind) == peak


def test_utilisation():
    # 494.5 TFLOP in half a second on two H100s: 989e12 / (2 * 989e12).
    assert flops.mfu(494.5e12, 0.5, "NVIDIA H100 80GB HBM3", devices=2) == pytest.approx(0.5)
    assert flops.mfu(1e12, 1.0, "cpu") is None
    with pytest.raises(ValueError, match="no utilisation"):
        flops.mfu(1e12, 0.0, "NVIDIA H200")
