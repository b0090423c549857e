"""The planner: batches, the command on compiled programs, bad input, exit statuses."""

import argparse
import dataclasses
import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import jax
import pytest
import tiny
from conftest import ROOT
from small_plan import V5E, config

from mmclip_jax import cli, flops
from mmclip_jax.errors import DoesNotFitError, UserError
from mmclip_jax.plan import collectives, compiling, memory, plan, printed, roofline, topologies
from mmclip_jax.plan.collectives import EMBEDDINGS, FORBIDDEN, GRADIENTS, IDS, PARAMETERS, SCALARS
from mmclip_jax.settings import read_config
from mmclip_jax.text.tokenizer import load_tokenizer
from mmclip_jax.train import run as training

pytestmark = pytest.mark.compiles

PLANS = sorted((ROOT / "docs" / "plans").glob("*.txt"))


def test_a_batch_keeps_the_ratio_as_far_as_the_chips_allow() -> None:
    def parts(rows: int, chips: int, **changes: Any) -> tuple[int, int]:
        data = plan.with_batch(config(**changes), rows, chips).data
        return data.batch_paired, data.batch_unpaired

    assert parts(8192, 256) == (6144, 2048)
    assert parts(1280, 256) == (1024, 256)  # 3.75 : 1.25
    assert parts(512, 256) == (256, 256)  # both parts stay
    assert parts(512, 256, data__batch_unpaired=0) == (512, 0)
    assert parts(512, 64, optimizer__accumulate=2) == (384, 128)
    for rows, message in ((1000, "take 768 or 1024"), (256, "take 512"), (0, "take 512"), (-256, "take 512")):
        with pytest.raises(UserError, match=f"{message}$"):
            plan.with_batch(config(), rows, 256)


# ---------------------------------------------------------------------------------------------------------------------
# The command, on eight CPU devices in place of a slice


@pytest.fixture
def cpu_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "tpu_devices", lambda topology: jax.devices()[: topology.chips])


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    path = tmp_path / "small.py"
    path.write_text(
        f"import sys\nsys.path[:0] = [{str(ROOT / 'tests')!r}, {str(ROOT / 'tests' / 'plan')!r}]\nimport small_plan\n"
        "def get_config():\n    return small_plan.config(**small_plan.CONTRASTIVE)\n"
    )
    return str(path)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[plan.Plan]:
    """What `mmclip plan` prints comes here too."""
    made: list[plan.Plan] = []
    make = plan.make_plan

    def make_and_keep(*arguments: Any) -> plan.Plan:
        made.append(make(*arguments))
        return made[-1]

    monkeypatch.setattr(plan, "make_plan", make_and_keep)
    return made


def test_the_compiled_step(
    cpu_slice: None, planned: list[plan.Plan], config_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", "--config", config_file, "--topology", "v5e:2x4"]) == 0
    (made,) = planned
    parameters = plan.abstract_params(config())
    by_kind: dict[str, int] = {}
    for collective in made.collectives:
        by_kind[collective.what] = by_kind.get(collective.what, 0) + collective.total
    # The decoders take no part: every other parameter's gradient is reduced once, in float32.
    taking_part = ("image_encoder", "image_projection", "text_encoder", "text_projection")
    assert by_kind.pop(GRADIENTS) == 4 * sum(memory.count_parameters(parameters[name]) for name in taking_part)
    assert by_kind.pop(EMBEDDINGS) == 2 * (2 * 128 * tiny.EMBED * 4)  # v and u: gathered; their gradients reduced
    assert by_kind.pop(IDS) == 128 * 2 * 4
    assert by_kind.pop(SCALARS) < 100
    assert not by_kind
    assert {collective.times for collective in made.collectives if collective.what == GRADIENTS} == {
        1,
        2,
        3,
    }
    # Parameters, two moments and the average in float32; a few scalars (steps, counters, the guard).
    assert made.parameters == memory.count_parameters(parameters)
    assert 0 < made.asked.memory.state - 16 * made.parameters < 16 * 4
    assert made.asked.rows == 128 == (made.recipe.rows if made.recipe else 0)
    assert made.largest is not None
    assert made.largest.memory.total <= 16e9 < 1.01 * made.largest.memory.total
    out = capsys.readouterr().out
    assert f"{made.parameters:,} parameters" in out
    assert re.search(r"0\.007 MB  all-gather +x1 +embeddings and their gradients: 2 f32\[128,7\]", out)
    assert "nothing else" in out


@pytest.mark.slow
@pytest.mark.parametrize(("fsdp", "chunk"), [(1, 0), (2, 0), (1, 16)])
def test_the_whole_step_with_every_objective(cpu_slice: None, fsdp: int, chunk: int) -> None:
    """A chunked loss sends embeddings and ids round a ring."""
    settings = config(mesh__fsdp=fsdp, objective__local__weight=0.5, objective__contrastive__chunk=chunk)
    made = plan.make_plan(settings, "v5e:2x4", 256)
    assert made.forbidden == []
    assert {c.what for c in made.collectives} - {SCALARS} == {
        EMBEDDINGS,
        IDS,
        GRADIENTS,
    } | ({PARAMETERS} if fsdp > 1 else set())
    assert any(collective.operation == "collective-permute" for collective in made.collectives) == (chunk > 0)
    assert (made.recipe.rows if made.recipe else 0, made.asked.rows) == (128, 256)


@pytest.mark.parametrize("chips", ["h100:8x4", "a100:4x1"])
def test_gpus_by_formula(chips: str, config_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--config", config_file, "--topology", chips, "--batch", "256"]) == 0
    out = capsys.readouterr().out
    assert "by formula" in out
    assert re.search(r"^global batch +256", out, re.MULTILINE)


def test_what_does_not_fit_is_status_1(
    config_file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(topologies.CHIPS, "h100", dataclasses.replace(topologies.CHIPS["h100"], memory=1e5))
    assert cli.main(["plan", "--config", config_file, "--topology", "h100:2x2"]) == 1
    out, err = capsys.readouterr()
    assert "fits: NO" in out
    assert "No batch fits" in out
    assert "the step needs" in err
    assert "--config.mesh.fsdp" in err


def test_forbidden_collectives_are_status_1() -> None:
    point = roofline.point(config(), memory.Memory(1.0, 1.0, 1.0), 1.0, V5E)
    wrong = collectives.Collective(FORBIDDEN, "all-to-all", ("s32[64,11]",), 1, 2816, 8)
    made = plan.Plan(V5E, 1, [wrong], point, point, None, "a compiler", 1.0)
    with pytest.raises(DoesNotFitError, match=r"all-to-all of s32\[64,11\]"):
        made.check()
    assert "1 arrays that docs/method.md does not allow" in printed.text(made)
    assert "No batch fits" in printed.text(made)


def test_a_gather_that_looks_like_a_reduction_is_said() -> None:
    def note(shard: bool, operation: str) -> bool:
        point = roofline.point(config(mesh__shard_optimizer=shard), memory.Memory(1.0, 1.0, 1.0), 1.0, V5E)
        sent = [collectives.Collective(GRADIENTS, operation, ("f32[64,11]",), 1, 2816, 8)]
        text = printed.text(plan.Plan(V5E, 1, sent, point, point, None, "a compiler", 2.5e9))
        assert ("without it 2.50 GB" in text) == shard
        return "or is a gather of parameters" in text

    assert note(True, "all-reduce")
    assert not note(False, "all-reduce")
    assert not note(True, "reduce-scatter")


def test_a_compiler_without_room_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Step:
        def lower(self, *_: Any) -> "Step":
            return self

        def compile(self, *_: Any) -> None:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in hbm. Used 20.5G of 15.75G\nmore")

    built = training.Built(None, None, None, Step())  # type: ignore[arg-type]
    monkeypatch.setattr(training, "build", lambda *_: built)
    with pytest.raises(DoesNotFitError, match=r"no room for the step \(.*Used 20.5G of 15.75G\)"):
        compiling.compile_step(config(), jax.devices()[:8], 2)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--topology", "v7:4x4"], "a chip of v5e"),
        (["--topology", "h100:8x4", "--batch", "1000"], "take 992 or 1024"),
        (["--topology", "h100:8x4", "--config.mesh.fsdp=5"], "mesh.fsdp=5 does not divide the 32 chips"),
        (["--topology", "h100:8x4", "--config.optimizer.clip=0"], "optimizer.clip"),
        ([], "--topology"),
    ],
)
def test_mistakes_are_one_line(
    more: list[str], message: str, config_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", "--config", config_file, *more]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert not out
    assert len(err.splitlines()) == 1


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_a_missing_compiler_is_one_line(config_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--config", config_file, "--topology", "v5e:2x2"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "mmclip: libtpu, the compiler for TPUs, is not installed: pip install -r requirements-tpu.txt, or add --formula"
    ]


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_the_committed_plans_are_those_of_the_recipe(path: Path) -> None:
    """The compiler says what fits: what each was asked for does, and the count by hand is not far off."""
    text = path.read_text()
    line = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("config", "topology", "batch"):
        line.add_argument(f"--{name}", required=True)
    asked_for, overrides = line.parse_known_args(shlex.split(text.splitlines()[0].removeprefix("$ mmclip plan")))
    recipe, rows = read_config(asked_for.config, overrides), int(asked_for.batch)
    recipe.model.text.vocab_size = load_tokenizer().vocab_size
    topology = topologies.parse_topology(asked_for.topology)
    params = plan.abstract_params(recipe)
    assert f"{memory.count_parameters(params):,} parameters" in text
    assert "fits: yes" in text
    assert FORBIDDEN not in text

    def asked(name: str) -> float:
        found = re.search(rf"^ *{name} +([\d,.]+)", text, re.MULTILINE)
        assert found is not None, name
        return float(found[1].replace(",", ""))

    assert asked("global batch") == rows
    work = flops.model_flops(flops.train_step_flops(plan.with_batch(recipe, rows, topology.chips)))
    assert asked("TFLOP a step, all chips") == pytest.approx(work / 1e12, abs=0.1)
    assert "  nothing else" in text
    counted = memory.memory_by_formula(recipe, params, rows, topology)
    assert asked("parameters and optimizer") == pytest.approx(counted.state / 1e9, abs=0.006)
    if topology.is_tpu:
        assert counted.buffers / 1e9 == pytest.approx(asked("buffers of the step"), rel=0.15)


# ---------------------------------------------------------------------------------------------------------------------
# The compiler for TPUs, where it is installed


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (make test-tpu)"
)


@pytest.mark.slow
@needs_libtpu
def test_a_tpus_compiler_moves_what_it_may_only(
    planned: list[plan.Plan], config_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole step for four chips: 40 s."""
    weights = [f"--config.objective.{name}.weight=1.0" for name in ("attmim", "entmlm")]
    line = ["plan", "--config", config_file, "--topology", "v5e:2x2", "--config.train.compiler_options="]
    assert cli.main([*line, *weights]) == 0
    (made,) = planned
    assert made.forbidden == []
    carried = {collective.what for collective in made.collectives}
    assert {EMBEDDINGS, IDS, GRADIENTS} <= carried
    assert "libtpu" in capsys.readouterr().out


@pytest.mark.slow
@needs_libtpu
def test_a_tpus_memory_is_known_to_its_compiler(config_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Logits of 17 GB on each of four chips: 20 s."""
    line = ["plan", "--config", config_file, "--topology", "v5e:2x2", "--batch", "131072"]
    assert cli.main([*line, "--config.train.compiler_options=", "--config.objective.contrastive.chunk=-1"]) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("mmclip: the compiler finds no room for the step (RESOURCE_EXHAUSTED")
    assert "--config.optimizer.accumulate" in err


def test_weights_that_a_run_starts_from_give_its_sizes(tmp_path: Path) -> None:
    former = tiny.save_run(tmp_path / "former", (3,))  # 32 wide, patches of 8 pixels
    asked = config(init__image=str(former), model__image_size=64)
    made = plan.make_plan(asked, "h100:8x1")
    plain = config(model__image_size=64, model__patch_size=8, model__stem="conv")
    plain.model.image.update({"width": 32, "depth": 2, "heads": 2, "mlp_dim": 128})
    assert made.parameters == plan.make_plan(plain, "h100:8x1").parameters
    assert asked.model.image.width != 32, "the settings that were given stay as they are"
    with pytest.raises(UserError, match=r"model.image.width=12 was given, but .* has 32"):
        plan.make_plan(asked, "h100:8x1", given=["model.image.width"])
