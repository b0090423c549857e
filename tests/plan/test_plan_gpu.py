"""Plans for GPUs: by formula, and compiled where their compiler is installed (make test-gpu)."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from conftest import ROOT
from small_plan import CONTRASTIVE, config

from mmclip_jax.data import batch
from mmclip_jax.errors import UserError
from mmclip_jax.plan import collectives, compiling, memory, plan, printed, targets, topologies
from mmclip_jax.plan.collectives import GRADIENTS, PARAMETERS

pytestmark = pytest.mark.compiles
WIDE_HEADS = {
    "model__dtype": "bfloat16",
    "model__image": {"width": 16, "heads": 2, "depth": 2},
    "model__text": {"width": 32, "heads": 4, "depth": 2},
    "model__image_decoder": {"width": 16, "heads": 2, "depth": 1},
    "model__text_decoder": {"width": 16, "heads": 2, "depth": 1},
    "train__compiler_options": "",
}
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None, reason="the compiler for GPUs is missing (make test-gpu)"
)


def settings(**changes: Any) -> Any:
    """Small settings whose heads suit cuDNN's kernel."""
    out = config()
    for name, value in (WIDE_HEADS | changes).items():
        *path, last = name.split("__")
        part = out
        for key in path:
            part = part[key]
        if isinstance(value, dict):
            part[last].update(value)
        else:
            part[last] = value
    return out


@pytest.mark.parametrize("kind", ["a100", "h100", "h200", "l40s", "v100"])
def test_every_gpu_has_a_plan_by_formula(kind: str) -> None:
    made = plan.make_plan(settings(), f"{kind}:8x2", 128, formula=True)
    text = printed.text(made)
    assert "by formula, a first look; nothing was compiled" in text
    assert ("requirements-gpu.txt" in text) == (kind in targets.TARGETS)
    assert re.search(r"chip-hours +[\d.]+", text)
    hours = made.asked.config.train.steps * made.asked.exposed / 3600
    assert made.asked.hours == pytest.approx(hours)
    assert made.topology.chip.peak > 0


@pytest.mark.parametrize(("said", "meant"), [("auto", "device"), ("device", "device"), ("host", "host")])
def test_images_are_augmented_where_a_run_would_do_it(said: str, meant: str) -> None:
    given = settings(data__augment_on=said)
    made = plan.make_plan(given, "h100:8x2", 128, formula=True)
    assert made.asked.config.data.augment_on == meant
    assert made.asked.memory.batch == 128 / 16 * batch.row_bytes(settings(data__augment_on=meant))
    assert given.data.augment_on == said


def test_one_node_needs_no_number_of_nodes() -> None:
    assert topologies.parse_topology("h100:8").shape == (8, 1)
    assert topologies.parse_topology("h200:8").chips == 8
    with pytest.raises(UserError, match="takes 2 sizes"):
        topologies.parse_topology("v5e:8")


def test_what_is_not_described_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert compiling.can_compile(topologies.parse_topology("h100:8"))
    assert not compiling.can_compile(topologies.parse_topology("a100:8"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not compiling.can_compile(topologies.parse_topology("h100:8"))
    with pytest.raises(UserError, match="--formula"):
        targets.describe("a100")
    for kind, target in targets.TARGETS.items():
        assert f"device_memory_size: {target.memory}" in targets.describe(kind)
        assert target.bandwidth == topologies.CHIPS[kind].bandwidth


def test_sharding_the_optimizer_saves_what_the_formula_says() -> None:
    whole, cut = settings(), settings(mesh__shard_optimizer=True)
    parameters, rows = 1_000_000, batch.total_rows(whole)
    params = {"kernel": jax.ShapeDtypeStruct((100, 10_000), np.float32)}
    slice_of = topologies.parse_topology("h100:8x2")
    before = memory.memory_by_formula(whole, params, rows, slice_of)
    after = memory.memory_by_formula(cut, params, rows, slice_of)
    assert before.state == 16 * parameters
    assert after.state == parameters
    sent = {each.what: each for each in collectives.collectives_by_formula(cut, parameters, 16)}
    assert sent[GRADIENTS].operation == "reduce-scatter"
    assert sent[PARAMETERS].operation == "all-gather"
    # A reduction is a scatter and a gather: what chips send stays the same.
    [reduced] = [each for each in collectives.collectives_by_formula(whole, parameters, 16) if each.what == GRADIENTS]
    assert sent[GRADIENTS].sent + sent[PARAMETERS].sent == pytest.approx(reduced.sent)
    made = plan.make_plan(cut, "h100:8x2", 128, formula=True)
    assert made.unsharded == 16 * made.parameters > made.asked.memory.state
    assert f"without it {made.unsharded / 1e9:.2f} GB" in printed.text(made).replace("\n", " ")


def test_a_flattened_gradient_is_one() -> None:
    text = """HloModule step

ENTRY %main (g: f32[240]) -> f32[240] {
  %g = f32[240]{0} parameter(0)
  ROOT %all-reduce.1 = f32[240]{0} all-reduce(%g), channel_id=1, replica_groups={{0,1}}, to_apply=%sum
}
"""
    made = settings()
    assert [each.what for each in collectives.collectives_of(text, made, {(12, 20)}, 2)] == [GRADIENTS]
    other = collectives.collectives_of(text.replace("240", "241000"), made, {(12, 20)}, 2)
    assert [each.what for each in other] == [collectives.FORBIDDEN]


def test_gradients_that_were_joined_end_to_end_are_told_apart() -> None:
    """As XLA for GPUs does: a fusion joins the flat gradients of a layer, and one reduction takes them all."""
    text = """HloModule step

%joined (p0: bf16[240], p1: bf16[20]) -> bf16[260] {
  %p0 = bf16[240]{0} parameter(0)
  %p1 = bf16[20]{0} parameter(1)
  ROOT %concatenate.1 = bf16[260]{0} concatenate(%p0, %p1), dimensions={0}
}

ENTRY %main (g: bf16[240], b: bf16[20]) -> bf16[260] {
  %g = bf16[240]{0} parameter(0)
  %b = bf16[20]{0} parameter(1)
  %all = bf16[260]{0} fusion(%g, %b), kind=kLoop, calls=%joined
  ROOT %all-reduce.1 = bf16[260]{0} all-reduce(%all), channel_id=1, replica_groups={{0,1}}, to_apply=%sum
}
"""
    [found] = collectives.collectives_of(text, settings(), {(12, 20), (20,)}, 2)
    assert (found.what, found.arrays, found.size) == (GRADIENTS, ("bf16[240]", "bf16[20]"), 520)
    foreign = text.replace("240", "241")
    assert {each.what for each in collectives.collectives_of(foreign, settings(), {(12, 20), (20,)}, 2)} == {
        GRADIENTS, collectives.FORBIDDEN if collectives.SCALAR_BYTES < 2 * 241 else collectives.SCALARS,
    }  # fmt: skip


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["h100", "h200"])
def test_cudnns_attention_is_in_the_compiled_step(kind: str, tmp_path: Path) -> None:
    """Forward and backward, with padding; a plan of what was compiled."""
    topology = topologies.parse_topology(f"{kind}:8")
    made = settings(model__attention="auto", data__batch_paired=64, data__batch_unpaired=32)
    compiled, _ = compiling.compile_step(made, compiling.devices_of(topology), tiny.MASK_ID)
    text = compiled.as_text() or ""
    assert "__cudnn$fmhaSoftmax(" in text or '"__cudnn$fmhaSoftmax"' in text
    assert '"__cudnn$fmhaSoftmaxBackward"' in text
    assert '"mask_type":"PADDING"' in text.replace(" ", "")
    assert '"__cudnn$fmha' not in _compiled_text(settings(model__attention="plain"), topology)


@needs_compiler
@pytest.mark.slow
def test_a_plan_of_a_compiled_step_prints_shares() -> None:
    made = plan.make_plan(settings(**CONTRASTIVE), "h100:8", 128)
    assert "jax-cuda12-pjrt" in made.compiled
    assert made.forbidden == []
    text = printed.text(made)
    assert "a step at best: attention" in text
    assert made.asked.counted is not None
    assert all(made.asked.counted.shares[kind] > 0 for kind in ("attention", "products", "norms", "optimizer"))


def _compiled_text(made: Any, topology: topologies.Topology) -> str:
    compiled, _ = compiling.compile_step(made, compiling.devices_of(topology), tiny.MASK_ID)
    return compiled.as_text() or ""


def test_the_compiler_for_gpus_is_that_of_the_pinned_jax() -> None:
    pins = {name: dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE))
            for name in ("requirements.txt", "requirements-gpu.txt")}  # fmt: skip
    jax = pins["requirements.txt"]["jax"]
    assert pins["requirements-gpu.txt"] == {"jax-cuda12-pjrt": jax, "jax-cuda12-plugin": jax}
