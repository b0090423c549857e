"""Collectives of a written program, and those that a formula gives."""

import math
import textwrap
from typing import Any

import jax
import pytest
from small_plan import config

from mmclip_jax import sharding
from mmclip_jax.plan import collectives, hlo, memory, topologies
from mmclip_jax.plan.collectives import EMBEDDINGS, FORBIDDEN, GRADIENTS, IDS, PARAMETERS, PIECES, SCALARS

pytestmark = pytest.mark.compiles


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

    %cut.condition (p: (f32[12,20,36], u32[])) -> pred[] {
      %c.2 = u32[]{:T(128)} constant(16)
      %i.2 = u32[]{:T(128)} get-tuple-element(%p), index=1
      ROOT %lt.3 = pred[] compare(%i.2, %c.2), direction=LT
    }

    %cut.body (p: (f32[12,20,36], u32[])) -> (f32[12,20,36], u32[]) {
      %two = u32[] constant(2)
      %i.3 = u32[] get-tuple-element(%p), index=1
      %next = u32[] add(%i.3, %two)
      %piece = bf16[12,20]{1,0} reduce-scatter(%a), channel_id=8
      ROOT %t.2 = (f32[12,20,36], u32[]) tuple(%a, %next)
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
      %w.4 = (f32[12,20,36], u32[]) while(%t), condition=%cut.condition, body=%cut.body
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
        (GRADIENTS, "reduce-scatter"): (8, 2 * 12 * 20),  # in a loop whose counter grows by two
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
        ("  %t = bf16[36,20]{0,1} collective-permute(%i), channel_id=9", FORBIDDEN),
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
    # A stack of three layers and one of them: whole, cut in two, both halves side by side, one below the other.
    assert shapes == {(3, 20, 7), (20, 7), (3, 10, 7), (10, 7), (2, 3, 10, 7), (2, 10, 7), (6, 10, 7)}


def test_what_starts_a_reduction_with_shares_returns_its_operands_too() -> None:
    line = "  %t = ((f32[64,7]{1,0}), (f32[8,7]{1,0})) reduce-scatter-start(%i), channel_id=9"
    assert found_in(line)[EMBEDDINGS, "reduce-scatter"] == (1, 8 * 7 * 4)


def test_bytes_that_a_ring_sends() -> None:
    def sent(operation: str, size: int, times: int = 1, group: int = 8) -> float:
        return collectives.Collective("", operation, (), times, size, group).sent

    assert sent("all-gather", 800) == 700  # seven of eight shares pass through a chip
    assert sent("reduce-scatter", 100) == 700  # the result is one share
    assert sent("all-reduce", 800) == 1400  # one after the other
    assert sent("all-reduce", 800, times=3) == 4200
    assert sent("all-reduce", 800, group=2) == 800
    assert sent("collective-permute", 800) == 800


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


@pytest.mark.parametrize(
    ("dtype", "bound", "body", "step"),
    [
        # The windowed products of TPUs: the counter is unsigned, and two pieces are computed in a turn.
        ("u32", 8, "%next = u32[]{:T(128)} add(%g.1, %two)", 2),
        ("u32", 9, "%next = u32[]{:T(128)} add(%g.1, %two)", 2),
        ("s32", 12, "%next = s32[]{:T(128)} add(%one, %g.1)", 1),
        ("s32", 12, "%next = s32[] copy(%sum)\n %sum = s32[] add(%g.1, %two)", 2),
        ("s64", 12, "%next = s64[] fusion(%g.1, %more), kind=kLoop, calls=%inner", 1),  # what it adds is not seen
        ("s32", 12, "%next = s32[] add(%g.2, %more)", 1),  # not the counter
    ],
)
def test_a_loop_turns_until_its_counter_reaches_the_bound(dtype: str, bound: int, body: str, step: int) -> None:
    condition = f"""\
      %c = {dtype}[]{{:T(128)}} constant({bound})
      %p = (f32[7], /*index=5*/{dtype}[]) parameter(0)
      %g.9 = {dtype}[]{{:T(128)}} get-tuple-element(%p), index=0
      %g.0 = {dtype}[]{{:T(128)}} get-tuple-element(%p), index=1
      %c.9 = {dtype}[] constant(999)
      ROOT %lt = pred[] compare(%g.0, %c), direction=LT"""
    rows = f"""\
      %one = {dtype}[] constant(1)
      %two = {dtype}[]{{:T(128)}} constant(2)
      %more = {dtype}[] constant(15)
      %g.1 = {dtype}[] get-tuple-element(%p), index=1
      %g.2 = {dtype}[] get-tuple-element(%p), index=0
      %beside = {dtype}[] add(%g.1, %more)
      {body}
      ROOT %t = (f32[7], /*index=1*/{dtype}[]{{:T(128)}}) tuple(%beside, /*index=1*/%next)"""
    for direction, end in (("LT", bound), ("LE", bound + 1)):
        asked = condition.replace("LT", direction).split("\n")
        assert hlo.turns(asked, rows.split("\n")) == math.ceil(end / step)


@pytest.mark.parametrize(
    "condition",
    [
        "ROOT %lt = pred[] compare(%i, %n), direction=LT",
        "%n = s32[] constant(0)\n ROOT %lt = pred[] compare(%i, %n), direction=GT",
        "%n = s32[] constant(12)\n ROOT %lt = pred[] fusion(%i, %n), kind=kLoop, calls=%inner",
    ],
)
def test_a_loop_whose_end_is_not_to_be_seen_counts_once_and_is_told(
    condition: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        assert hlo.turns(condition.split("\n"), []) == 1
    assert "one turn" in caplog.text


def test_a_sharded_state_sends_pieces_of_parameters_and_gradients() -> None:
    line = "  %t = bf16[36,20]{0,1} collective-permute(%i), channel_id=9"
    assert (PIECES, "collective-permute") in found_in(line, mesh__shard_optimizer=True)
