"""The planner: figures by hand, collectives of written and of compiled programs, bad input, exit statuses."""

import dataclasses
import importlib.util
import math
import re
import textwrap
from pathlib import Path
from typing import Any

import jax
import pytest
import tiny
from conftest import ROOT
from ml_collections import ConfigDict

from mmclip_jax import cli, sharding
from mmclip_jax.data import batch, pipeline
from mmclip_jax.errors import DoesNotFitError, UserError
from mmclip_jax.plan import collectives, compiling, flops, hlo, memory, plan, printed, roofline, topologies
from mmclip_jax.plan.collectives import EMBEDDINGS, FORBIDDEN, GRADIENTS, IDS, PARAMETERS, SCALARS
from mmclip_jax.text.tokenizer import load_tokenizer
from mmclip_jax.train import run as training

pytestmark = pytest.mark.compiles

QUICK = "xla_backend_optimization_level=0 xla_llvm_disable_expensive_passes=true"
CONTRASTIVE = {"objective__attmim__weight": 0.0, "objective__entmlm__weight": 0.0}
V5E = topologies.parse_topology("v5e:2x4")
PLANS = sorted((ROOT / "docs" / "plans").glob("*.txt"))


def config(**changes: Any) -> ConfigDict:
    """Depths of 3 and 2: layers are loops, and each turns another number of times."""
    batch = {"data__batch_paired": 96, "data__batch_unpaired": 32}
    return tiny.config(**(batch | {"model__image__depth": 3, "train__compiler_options": QUICK} | changes))


# ---------------------------------------------------------------------------------------------------------------------
# Topologies and batches


def test_topologies_are_read() -> None:
    for text, chips, bandwidth in (
        ("v5e:16x16", 256, 200e9),
        ("v5p:4x4x8", 128, 600e9),
        ("V6E:2x2", 4, 400e9),
        ("h100:8x1", 8, 450e9),  # NVLink
        ("h100:8x4", 32, 400e9),  # eight network cards of 50 GB/s
        ("h100:2x4", 8, 100e9),
    ):
        topology = topologies.parse_topology(text)
        assert (topology.chips, topology.bandwidth(chips)) == (chips, bandwidth), text
        assert topology.is_tpu == text.lower().startswith("v")
    assert all(chip.peak > 1e14 for chip in topologies.CHIPS.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v9:2x2", "a chip of v5e, v5p"),
        ("v5e", "is not CHIP:AxB"),
        ("v5e:0x4", "is not CHIP:AxB"),
        ("v5e:4x4x4", "v5e takes 2 sizes, not 3"),
        ("v5p:4x4", "v5p takes 3 sizes, not 2"),
        ("h100:8x2x2", "h100 takes 2 sizes"),
        ("v5e:32x16", "512 chips, but the largest slice has 256"),
    ],
)
def test_unknown_topologies_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        topologies.parse_topology(text)


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
# Collectives of a program


# 64 rows on 8 chips; embed_dim 7. A loop of 12 layers whose condition compares with 12, and one that notes its 5 turns.
PROGRAM = textwrap.dedent("""\
    HloModule jit_train_step

    %add (x: f32[], y: f32[]) -> f32[] {
      ROOT %s = f32[]{:T(128)} add(%x, %y)
    }

    %wide.condition (p: (s32[], f32[12,20,36])) -> pred[] {
      %c = s32[]{:T(128)} constant(12)
      ROOT %lt = pred[] compare(%i, %c), direction=LT
    }

    %wide.body (p: (s32[], f32[12,20,36])) -> (s32[], f32[12,20,36]) {
      %g.1 = (bf16[1,20,36]{2,1,0:T(8,128)(2,1)S(1)}, /*index=1*/bf16[36]{0}) all-reduce(%a), channel_id=1
      %f.1 = f32[20] fusion(%a), kind=kLoop, calls=%inner
    }

    %inner (p: f32[20]) -> f32[20] {
      ROOT %g.2 = f32[20]{0} all-reduce(%p), channel_id=2, to_apply=%add
    }

    %noted.condition (p: (s32[])) -> pred[] {
      ROOT %lt.2 = pred[] compare(%i, %n), direction=LT
    }

    %noted.body (p: (s32[])) -> (s32[]) {
      %ring = (f32[8,7]{1,0}, f32[8,7]{1,0}, u32[], u32[]) collective-permute-start(%v), channel_id=3
      %ring.done = f32[8,7]{1,0} collective-permute-done(%ring)
    }

    %piece.1 (p: f32[8,7]) -> f32[64,7] {
      %all-gather.1 = f32[64,7]{1,0:T(8,128)} all-gather(%p), channel_id=4, dimensions={0}
    }

    %piece.2 (p: f32[8,7]) -> f32[64,7] {
      %all-gather.2 = f32[64,7]{1,0:T(8,128)S(1)} all-gather(%p), channel_id=4, dimensions={0}
    }

    ENTRY %main (p: f32[8,7]) -> f32[] {
      %w = (s32[], f32[12,20,36]) while(%t), condition=%wide.condition, body=%wide.body
      %w.2 = (s32[]) while(%t), condition=%noted.condition, body=%noted.body, config={"known_trip_count":{"n":"5"}}
      %x.1 = f32[64,7] fusion(%p), kind=kOutput, calls=%piece.1
      %x.2 = f32[64,7] fusion(%p), kind=kOutput, calls=%piece.2
      %ids = (s32[8,2]{1,0}, s32[64,2]{1,0}) all-gather-start(%i), channel_id=6, dimensions={0}
      %loss = (f32[]{:T(128)}, f32[64,7]{1,0}) all-reduce(%l, %d), channel_id=7, to_apply=%add
    MORE
    }
    """)


def found_in(more: str = "", **changes: Any) -> dict[tuple[str, str], tuple[int, int]]:
    """{(what, operation): (times, size)} of PROGRAM."""
    settings = config(data__batch_paired=32, data__batch_unpaired=32, **changes)
    weights = [(12, 20, 36), (20, 36), (12, 36), (36,), (12, 20), (20,), ()]
    found = collectives.collectives_of(PROGRAM.replace("MORE", more), settings, weights, 8)
    assert [c.total for c in found] == sorted((c.total for c in found), reverse=True)
    return {(c.what, c.operation): (c.times, c.size) for c in found}


def test_collectives_are_counted_once_a_turn_and_named_by_what_they_carry() -> None:
    gathered, per_chip = 64 * 7 * 4, 8 * 7 * 4
    assert found_in() == {
        # In the loop; the f32[20] lies in a fusion there.
        (GRADIENTS, "all-reduce"): (12, 2 * (20 * 36 + 36) + 4 * 20),
        (EMBEDDINGS, "collective-permute"): (5, per_chip),
        (EMBEDDINGS, "all-gather"): (1, gathered),  # in two pieces of one channel
        (EMBEDDINGS, "all-reduce"): (1, gathered),
        (IDS, "all-gather"): (1, 64 * 2 * 4),
        (SCALARS, "all-reduce"): (1, 4),
    }


@pytest.mark.parametrize(
    ("line", "carries"),
    [
        ("  %t = s32[64,11]{1,0} all-gather(%i), channel_id=9", FORBIDDEN),  # tokens
        ("  %t = u8[64,20,20,1]{3,2,1,0} all-gather(%i), channel_id=9", FORBIDDEN),  # images
        ("  %t = bf16[64,25,12]{2,1,0} all-reduce(%i), channel_id=9", FORBIDDEN),  # features
        ("  %t = f32[8,7]{1,0} all-to-all(%i), channel_id=9", FORBIDDEN),  # embeddings, but not so
        ("  %t = f32[20,36]{1,0} all-gather(%i), channel_id=9", FORBIDDEN),  # parameters without fsdp
        ("  %t = f32[8,8,7]{2,1,0} all-gather(%i), channel_id=9", EMBEDDINGS),  # of eight chips
        ("  %t = s32[8,8,2]{2,1,0} all-gather(%i), channel_id=9", IDS),
        ("  %t = f32[1024]{0} all-reduce(%i), channel_id=9", SCALARS),
        ("  %t = f32[1025]{0} all-reduce(%i), channel_id=9", FORBIDDEN),  # more than 4 KiB
        ("  %t = f32[8]{0} all-gather(%i), channel_id=9", FORBIDDEN),
        (
            "  %t = f32[8,7]{1,0} all-gather(%i), channel_id=9",
            FORBIDDEN,
        ),  # of a chip's rows, which need no gather
        ("  %t = f32[8,7]{1,0} reduce-scatter(%i), channel_id=9", EMBEDDINGS),
        ("  %t = bf16[36,20]{0,1} reduce-scatter(%i), channel_id=9", GRADIENTS),
    ],
)
def test_what_a_collective_carries(line: str, carries: str) -> None:
    before, after = found_in(), found_in(line)
    assert [what for (what, _), counted in after.items() if before.get((what, _)) != counted] == [carries]


def test_collectives_are_found_wherever_they_hide() -> None:
    hidden = "%NAME (p: f32[8,7]) -> f32[64,7] {\n  %all-gather.3 = f32[64,7]{1,0} all-gather(%p), channel_id=5\n}\n"
    settings = config(data__batch_paired=32, data__batch_unpaired=32)
    for name in ("wide.condition.2", "yes", "no", "never"):  # nobody is seen to call the last
        more = "%i.1 = f32[64,7] conditional(%p, %x, %x), true_computation=%yes, false_computation=%no\n"
        more += "%w.3 = (s32[]) while(%t), condition=%wide.condition.2, body=%noted.body"
        text = hidden.replace("NAME", name) + PROGRAM.replace("MORE", more)
        gathers = [c for c in collectives.collectives_of(text, settings, [], 8) if c.operation == "all-gather"]
        assert [c.arrays.count("f32[64,7]") for c in gathers if c.what == FORBIDDEN] == [1] * (name == "never"), name
        allowed = [c.arrays.count("f32[64,7]") for c in gathers if c.what == EMBEDDINGS]
        assert sum(allowed) == 1 + (name != "never"), name  # one is there anyway
    for line in ("  %s = (f32[8,7], u32[], token[]) send(%p, %t)", "  %r = (f32[8,7], token[]) recv(%t)"):
        assert (FORBIDDEN, line.split("(")[-2].split()[-1]) in found_in(line)


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[64,4]<=[256]", 4),
        ("[4,64]<=[64,4]T(1,0)", 64),
        ("mesh['axis_0'=2,'axis_1'=1,'axis_2'=4], device_ids=([2,4]T(1,0)) {'axis_0'}", 2),
        ("mesh['axis_0'=2,'axis_1'=1,'axis_2'=4] {'axis_0','axis_2'}", 8),
        ("{}", 256),
    ],
)
def test_chips_that_do_a_collective_together(groups: str, size: int) -> None:
    line = f"%t = f32[20,36] all-reduce(%i), channel_id=9, replica_groups={groups}, to_apply=%add"
    assert hlo.group_size(line, 256) == size


def test_a_ring_of_chunks_that_do_not_divide_is_allowed() -> None:
    # 8 rows a chip in chunks of 3: three whole chunks.
    line = "  %t = f32[9,7]{1,0} collective-permute(%i), channel_id=9"
    assert (EMBEDDINGS, "collective-permute") in found_in(line, objective__contrastive__chunk=3)
    assert (FORBIDDEN, "collective-permute") in found_in(line, objective__contrastive__chunk=4)


def test_parameters_may_be_gathered_under_fsdp_only() -> None:
    for shape in ("20,36", "5,4,36"):  # of five heads
        line = f"  %t = f32[{shape}] all-gather(%i), channel_id=9"
        assert found_in(line, mesh__fsdp=2)[PARAMETERS, "all-gather"] == (1, 20 * 36 * 4)
        assert (FORBIDDEN, "all-gather") in found_in(line)


def test_shapes_of_parameters() -> None:
    mesh = sharding.make_mesh(2, jax.devices()[:8])
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "fsdp", None))
    shapes = collectives.parameter_shapes({"kernel": jax.ShapeDtypeStruct((3, 20, 7), "float32", sharding=place)})
    # A stack of three layers and one of them: whole, cut in two, both halves side by side.
    assert shapes == {(3, 20, 7), (20, 7), (3, 10, 7), (10, 7), (2, 3, 10, 7), (2, 10, 7)}


def test_bytes_that_a_ring_sends() -> None:
    def sent(operation: str, size: int, times: int = 1, group: int = 8) -> float:
        return collectives.Collective("", operation, (), times, size, group).sent

    assert sent("all-gather", 800) == 700  # seven of eight shares pass through a chip
    assert sent("reduce-scatter", 100) == 700  # the result is one share
    assert sent("all-reduce", 800) == 1400  # one after the other
    assert sent("all-reduce", 800, times=3) == 4200
    assert sent("all-reduce", 800, group=2) == 800
    assert sent("collective-permute", 800) == 800


# ---------------------------------------------------------------------------------------------------------------------
# Memory and time


def test_what_the_batch_holds() -> None:
    settings, mesh = config(), sharding.make_mesh(1, jax.devices()[:8])
    arrays = jax.tree.leaves(training.abstract_batch(settings, mesh))
    assert sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays) == 128 * batch.row_bytes(settings)


@pytest.mark.slow
def test_the_batch_that_is_planned_with_is_that_of_the_pipeline(phantom_dir: Path) -> None:
    settings = tiny.load_config("demo", "runlocal")
    settings.data.train = (str(phantom_dir),)
    made = next(pipeline.make_train_iterator(settings, load_tokenizer()))
    expected = {part: {k: (v.shape, v.dtype) for k, v in rows.items() if k != "record"} for part, rows in made.items()}
    planned = training.abstract_batch(settings, sharding.make_mesh(1, jax.devices()[:8]))
    assert {part: {k: (v.shape, v.dtype) for k, v in rows.items()} for part, rows in planned.items()} == expected


def test_buffers_grow_with_the_rows_and_gradients_do_not() -> None:
    before = memory.Memory(state=1000.0, batch=64.0, buffers=4e9, program=7.0)
    twice = memory.scaled_memory(before, config(), parameters=500_000_000, rows=256, chips=8)
    logits = 6 * 4 * (256**2 - 2 * 128**2) / 8
    assert twice == memory.Memory(1000.0, 128.0, 2e9 + 2 * 2e9 + logits, 7.0)
    assert twice.total == 1000 + 128 + 6e9 + logits + 7


def test_logits_are_chunked_where_they_are_large() -> None:
    chunked = 6 * 128 * 2**20
    assert memory.pairs_bytes(config(), 1024, 8) == 6 * 4 * 128 * 1024
    assert memory.pairs_bytes(config(), 10**6, 8) == chunked
    assert memory.pairs_bytes(config(objective__contrastive__chunk=-1), 10**6, 8) == 6 * 4 * 1e12 / 8
    assert memory.pairs_bytes(config(objective__contrastive__chunk=100), 1024, 8) == 6 * 4 * 128 * 100


def test_the_largest_batch_by_hand() -> None:
    # 16 GB hold 1 GB and 1.5 GB for each of ten thousand rows a chip: ten times that, in steps of 16 rows.
    def memory_at(rows: int) -> memory.Memory:
        return memory.Memory(1e9, 0.0, 1.5e9 * rows / 8 / 10_000)

    assert memory.largest_batch(config(optimizer__accumulate=2), V5E, memory_at) == 800_000
    assert memory.largest_batch(config(), V5E, lambda rows: memory.Memory(17e9, 0.0, 0.0)) == 0


def test_the_roofline_by_hand() -> None:
    settings = config()
    point = roofline.point(settings, memory.Memory(3e9, 8e6, 5e9, 1e9), links=0.02, topology=V5E)
    assert point.products == pytest.approx(sum(flops.train_step_flops(settings).values()) / 8 / 197e12)
    assert point.traffic == pytest.approx((2 * 8e9 + 8e6) / 800e9)
    # 2, 20.01 and 20 ms.
    point = dataclasses.replace(point, products=0.002)
    assert point.hidden == point.traffic
    assert point.exposed == pytest.approx(0.02001 + 0.02)
    assert point.alone / point.exposed == pytest.approx(0.50012, abs=1e-5)


def test_memory_by_formula_by_hand() -> None:
    settings = config(optimizer__ema=0.0, **CONTRASTIVE)
    counted = memory.memory_by_formula(settings, parameters=1000, rows=128, chips=8)
    assert counted.state == 3 * 4 * 1000
    # Three image layers on 25 patches, two text layers on 11 tokens, float32, nothing recomputed.
    image = 3 * (25 * (8 * 12 + 2 * 20) * 4 + 3 * 25 * 25 * 8)
    text = 2 * (11 * (8 * 20 + 2 * 36) * 4 + 5 * 11 * 11 * 8)
    assert counted.buffers == 8 * 1000 + 16 * (image + text) + 6 * 4 * 16 * 128
    # With remat the inputs of all layers, and one image layer twice.
    settings.model.remat = True
    kept = 3 * 25 * 12 * 4 + 2 * 11 * 20 * 4
    counted = memory.memory_by_formula(settings, 1000, 128, 8)
    assert counted.buffers == 8 * 1000 + 16 * (kept + 2 * image / 3) + 6 * 4 * 16 * 128
    settings.mesh.fsdp = 4
    assert memory.memory_by_formula(settings, 1000, 128, 8).state == counted.state / 4


# ---------------------------------------------------------------------------------------------------------------------
# The command, on eight CPU devices in place of a slice


@pytest.fixture
def cpu_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "tpu_devices", lambda topology: jax.devices()[: topology.chips])


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    path = tmp_path / "small.py"
    path.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\nimport test_plan\n"
        "def get_config():\n    return test_plan.config(**test_plan.CONTRASTIVE)\n"
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
    assert by_kind.pop(GRADIENTS) == 4 * sum(plan.count_parameters(parameters[name]) for name in taking_part)
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
    assert made.parameters == plan.count_parameters(parameters)
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


def test_what_gpus_send_by_hand() -> None:
    settings = config(mesh__fsdp=2, objective__local__weight=0.5)  # 128 rows, embeddings of 7, 4 drawn tokens a row
    found = {(c.what, c.operation, c.arrays): c.sent for c in collectives.collectives_by_formula(settings, 1000, 32)}
    assert found == {
        (EMBEDDINGS, "all-gather", ("f32[128,7]",)): pytest.approx(2 * 128 * 7 * 4 * 31 / 32),
        (EMBEDDINGS, "reduce-scatter", ("f32[4,7]",)): pytest.approx(2 * 4 * 7 * 4 * 31),
        (EMBEDDINGS, "all-gather", ("f32[128,4,7]",)): pytest.approx(128 * 4 * 7 * 4 * 31 / 32),
        (EMBEDDINGS, "all-reduce", ("f32[128,4,7]",)): pytest.approx(2 * 128 * 4 * 7 * 4 * 31 / 32),
        (IDS, "all-gather", ("s32[128,2]",)): pytest.approx(128 * 2 * 4 * 31 / 32),
        (PARAMETERS, "all-gather", ("f32[1000]",)): pytest.approx(2 * 4000 / 2),
        (GRADIENTS, "reduce-scatter", ("f32[500]",)): pytest.approx(2000),
        (GRADIENTS, "all-reduce", ("f32[500]",)): pytest.approx(2 * 2000 * 15 / 16),
    }
    h100 = topologies.parse_topology("h100:8x4")
    assert (h100.bandwidth(2), h100.bandwidth(16)) == (450e9, 400e9)  # inside a node, and out of it
    local = memory.pairs_bytes(settings, 128, 32) - memory.pairs_bytes(config(), 128, 32)
    assert local == 2 * 4 * (128 / 32) * 25 * 128 * 4


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
    made = plan.Plan(V5E, 1, [wrong], point, point, None, "a compiler")
    with pytest.raises(DoesNotFitError, match=r"all-to-all of s32\[64,11\]"):
        made.check()
    assert "1 arrays that docs/method.md does not allow" in printed.text(made)
    assert "No batch fits" in printed.text(made)


def test_a_compiler_without_room_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Step:
        def lower(self, *_: Any) -> "Step":
            return self

        def compile(self) -> None:
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
        "mmclip: libtpu, the compiler for TPUs, is not installed: pip install -r requirements-tpu.txt"
    ]


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_the_committed_plans_are_those_of_the_recipe(path: Path) -> None:
    """The compiler says what fits: at the batch of the capacity test it does, and the count by hand is not far off."""
    text = path.read_text()
    recipe = tiny.load_config("mmclip_vitb16")
    recipe.model.text.vocab_size = load_tokenizer().vocab_size
    topology = topologies.parse_topology(path.stem.replace("_", ":"))
    parameters = plan.count_parameters(plan.abstract_params(recipe))
    assert f"{parameters:,} parameters" in text
    assert "fits: yes" in text
    assert FORBIDDEN not in text

    def asked(name: str) -> float:
        found = re.search(rf"^ *{name} +([\d,.]+)", text, re.MULTILINE)
        assert found is not None, name
        return float(found[1].replace(",", ""))

    assert asked("global batch") == 8192
    work = flops.model_flops(flops.train_step_flops(plan.with_batch(recipe, 8192, topology.chips)))
    assert asked("TFLOP a step, all chips") == pytest.approx(work / 1e12, abs=0.1)
    if topology.is_tpu:
        assert "  nothing else" in text
        counted = memory.memory_by_formula(recipe, parameters, 8192, topology.chips)
        assert asked("parameters and optimizer") == pytest.approx(counted.state / 1e9, abs=0.01)
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
