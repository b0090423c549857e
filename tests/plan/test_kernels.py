"""Bytes, FLOPs and seconds of kernels, against programs whose figures are counted by hand."""

import dataclasses
import textwrap

import jax
import jax.numpy as jnp
import pytest

from mmclip_jax.plan import hlo, kernels, topologies

CHIP = topologies.CHIPS["h100"]

# A loop of three turns over stacked weights [3,64,64]; a kernel that slices them and multiplies, one that writes a
# row of a stack, a reduction beside the product, and the pass of the optimizer behind the loop.
PROGRAM = textwrap.dedent("""\
    HloModule step, is_scheduled=true

    %sum (a: f32[], b: f32[]) -> f32[] {
      %a = f32[] parameter(0)
      %b = f32[] parameter(1)
      ROOT %add = f32[] add(%a, %b)
    }

    %multiply (p0: bf16[3,64,64], p1: s32[], p2: bf16[128,64]) -> bf16[128,64] {
      %p0 = bf16[3,64,64]{2,1,0} parameter(0)
      %p1 = s32[] parameter(1)
      %p2 = bf16[128,64]{1,0} parameter(2)
      %zero = s32[] constant(0)
      %slice = bf16[1,64,64]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,64,64}
      %kernel = bf16[64,64]{1,0} bitcast(%slice)
      ROOT %dot = bf16[128,64]{1,0} dot(%p2, %kernel), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(update)/mlp_in/dot_general"}
    }

    %stack (p0: bf16[3,128,64], p1: s32[], p2: bf16[128,64]) -> bf16[3,128,64] {
      %p0 = bf16[3,128,64]{2,1,0} parameter(0)
      %p1 = s32[] parameter(1)
      %p2 = bf16[128,64]{1,0} parameter(2)
      %zero = s32[] constant(0)
      %row = bf16[1,128,64]{2,1,0} bitcast(%p2)
      ROOT %write = bf16[3,128,64]{2,1,0} dynamic-update-slice(%p0, %row, %p1, %zero, %zero)
    }

    %adam (p0: f32[64,64], p1: f32[64,64]) -> (f32[64,64], f32[64,64]) {
      %p0 = f32[64,64]{1,0} parameter(0)
      %p1 = f32[64,64]{1,0} parameter(1)
      %new = f32[64,64]{1,0} add(%p0, %p1)
      ROOT %both = (f32[64,64]{1,0}, f32[64,64]{1,0}) tuple(%new, %p1)
    }

    %body (state: (s32[], bf16[128,64], bf16[3,64,64], bf16[3,128,64], f32[64,64])) -> (s32[], bf16[128,64], bf16[3,64,64], bf16[3,128,64], f32[64,64]) {
      %state = (s32[], bf16[128,64]{1,0}, bf16[3,64,64]{2,1,0}, bf16[3,128,64]{2,1,0}, f32[64,64]{1,0}) parameter(0)
      %turn = s32[] get-tuple-element(%state), index=0
      %x = bf16[128,64]{1,0} get-tuple-element(%state), index=1
      %weights = bf16[3,64,64]{2,1,0} get-tuple-element(%state), index=2
      %kept = bf16[3,128,64]{2,1,0} get-tuple-element(%state), index=3
      %gradient = f32[64,64]{1,0} get-tuple-element(%state), index=4
      %reduce = f32[64,64]{1,0} all-reduce-start(%gradient), channel_id=1, replica_groups={{0,1}}, to_apply=%sum
      %y = bf16[128,64]{1,0} fusion(%weights, %turn, %x), kind=kOutput, calls=%multiply, metadata={op_name="jit(update)/mlp_in/dot_general"}
      %reduced = f32[64,64]{1,0} all-reduce-done(%reduce)
      %more = bf16[3,128,64]{2,1,0} fusion(%kept, %turn, %y), kind=kLoop, calls=%stack, metadata={op_name="jit(update)/while/body/norm_self/add"}
      ROOT %out = (s32[], bf16[128,64]{1,0}, bf16[3,64,64]{2,1,0}, bf16[3,128,64]{2,1,0}, f32[64,64]{1,0}) tuple(%turn, %y, %weights, %more, %reduced)
    }

    %condition (state: (s32[], bf16[128,64], bf16[3,64,64], bf16[3,128,64], f32[64,64])) -> pred[] {
      %state = (s32[], bf16[128,64]{1,0}, bf16[3,64,64]{2,1,0}, bf16[3,128,64]{2,1,0}, f32[64,64]{1,0}) parameter(0)
      %turn = s32[] get-tuple-element(%state), index=0
      %three = s32[] constant(3)
      ROOT %less = pred[] compare(%turn, %three), direction=LT
    }

    ENTRY %main (first: (s32[], bf16[128,64], bf16[3,64,64], bf16[3,128,64], f32[64,64]), q: bf16[2,10,4,8], k: bf16[2,6,4,8], f: f32[4,32], g: f32[32,16]) -> f32[64,64] {
      %first = (s32[], bf16[128,64]{1,0}, bf16[3,64,64]{2,1,0}, bf16[3,128,64]{2,1,0}, f32[64,64]{1,0}) parameter(0)
      %q = bf16[2,10,4,8]{3,2,1,0} parameter(1)
      %k = bf16[2,6,4,8]{3,2,1,0} parameter(2)
      %f = f32[4,32]{1,0:S(1)} parameter(3)
      %g = f32[32,16]{1,0} parameter(4)
      %fmha = (bf16[2,4,10,8]{3,1,2,0}, u8[0]{0}) custom-call(%q, %k, %k), custom_call_target="__cudnn$fmhaSoftmax", metadata={op_name="jit(update)/cross_attention/attend/dot_product_attention_fwd"}
      %full = f32[4,16]{1,0:S(1)} dot(%f, %g), lhs_contracting_dims={1}, rhs_contracting_dims={0}, operand_precision={highest,highest}, metadata={op_name="jit(update)/dot"}
      %gemm = (f32[4,16]{1,0}, s8[64]{0}) custom-call(%f, %g), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
      %last = (s32[], bf16[128,64]{1,0}, bf16[3,64,64]{2,1,0}, bf16[3,128,64]{2,1,0}, f32[64,64]{1,0}) while(%first), condition=%condition, body=%body
      %ahead = ((f32[32,16]{1,0}), f32[8,16]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%g), slice={[0:8], [0:16]}
      %near = f32[8,16]{1,0:S(1)} slice-done(%ahead)
      %copy = (f32[32,16]{1,0:S(1)}, f32[32,16]{1,0}, u32[]{:S(2)}) copy-start(%g)
      %copied = f32[32,16]{1,0:S(1)} copy-done(%copy)
      %grad = f32[64,64]{1,0} get-tuple-element(%last), index=4
      %adam_pass = (f32[64,64]{1,0}, f32[64,64]{1,0}) fusion(%grad, %grad), kind=kLoop, calls=%adam, metadata={op_name="jit(update)/update_state/add"}
      ROOT %result = f32[64,64]{1,0} get-tuple-element(%adam_pass), index=0
    }
    """)  # noqa: E501
LAYER, ROWS, FLOAT_LAYER = 2 * 64 * 64, 2 * 128 * 64, 4 * 64 * 64


@pytest.fixture(scope="module")
def found() -> dict[str, kernels.Kernel]:
    return {kernel.name: kernel for kernel in kernels.kernels(PROGRAM)}


def test_a_kernel_is_counted_once_a_turn_with_what_it_touches(found: dict[str, kernels.Kernel]) -> None:
    assert set(found) == {"y", "more", "fmha", "full", "gemm", "adam_pass", "less"}
    assert {name: kernel.times for name, kernel in found.items() if name not in ("less",)} == {
        "y": 3, "more": 3, "fmha": 1, "full": 1, "gemm": 1, "adam_pass": 1,
    }  # fmt: skip
    product = found["y"]
    assert product.flops == 2 * 128 * 64 * 64
    assert product.bytes == LAYER + 4 + 2 * ROWS  # a slice of the weights, the turn, rows in and out
    assert found["more"].bytes == ROWS + 4 + ROWS  # one row of the stack, not the stack
    assert found["adam_pass"].bytes == 4 * FLOAT_LAYER


# As compilers for TPUs write it: a product whose operands are slices within further fusions, beside a reduction.
NESTED = textwrap.dedent("""\
    HloModule step, is_scheduled=true

    %sum (a: f32[], b: f32[]) -> f32[] {
      %a = f32[] parameter(0)
      %b = f32[] parameter(1)
      ROOT %add = f32[] add(%a, %b)
    }

    %slice (p0: bf16[3,64,64], p1: s32[]) -> bf16[64,64] {
      %p0 = bf16[3,64,64]{2,1,0} parameter(0)
      %p1 = s32[] parameter(1)
      %zero = s32[] constant(0)
      %layer = bf16[1,64,64]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,64,64}
      ROOT %kernel = bf16[64,64]{1,0} bitcast(%layer)
    }

    %write (p0: bf16[128,64], p1: bf16[3,128,64], p2: s32[]) -> bf16[3,128,64] {
      %p0 = bf16[128,64]{1,0} parameter(0)
      %p1 = bf16[3,128,64]{2,1,0} parameter(1)
      %p2 = s32[] parameter(2)
      %zero = s32[] constant(0)
      %row = bf16[1,128,64]{2,1,0} bitcast(%p0)
      ROOT %written = bf16[3,128,64]{2,1,0} dynamic-update-slice(%p1, %row, %p2, %zero, %zero)
    }

    %multiply (p0: f32[32,64], p1: f32[32,64], p2: bf16[3,64,64], p3: s32[], p4: bf16[128,64], p5: bf16[3,128,64]) -> (f32[32,64], f32[32,64], bf16[3,128,64]) {
      %p0 = f32[32,64]{1,0} parameter(0)
      %p1 = f32[32,64]{1,0} parameter(1)
      %p2 = bf16[3,64,64]{2,1,0} parameter(2)
      %p3 = s32[] parameter(3)
      %p4 = bf16[128,64]{1,0} parameter(4)
      %p5 = bf16[3,128,64]{2,1,0} parameter(5)
      %reduced = f32[32,64]{1,0} all-reduce(%p0), channel_id=7, replica_groups={{0,1}}, to_apply=%sum
      %kernel = bf16[64,64]{1,0} fusion(%p2, %p3), kind=kLoop, calls=%slice
      %dot = bf16[128,64]{1,0} dot(%p4, %kernel), lhs_contracting_dims={1}, rhs_contracting_dims={0}
      %stack = bf16[3,128,64]{2,1,0} fusion(%dot, %p5, %p3), kind=kLoop, calls=%write
      ROOT %all = (f32[32,64]{1,0}, f32[32,64]{1,0}, f32[32,64]{1,0}, bf16[3,128,64]{2,1,0}) tuple(%p0, %p1, %reduced, %stack)
    }

    ENTRY %main (a: f32[32,64], b: f32[32,64], w: bf16[3,64,64], n: s32[], x: bf16[128,64], kept: bf16[3,128,64]) -> bf16[3,128,64] {
      %a = f32[32,64]{1,0} parameter(0)
      %b = f32[32,64]{1,0} parameter(1)
      %w = bf16[3,64,64]{2,1,0} parameter(2)
      %n = s32[] parameter(3)
      %x = bf16[128,64]{1,0} parameter(4)
      %kept = bf16[3,128,64]{2,1,0} parameter(5)
      %product = (f32[32,64]{1,0}, f32[32,64]{1,0}, f32[32,64]{1,0}, bf16[3,128,64]{2,1,0}) fusion(%a, %b, %w, %n, %x, %kept), kind=kOutput, calls=%multiply
      ROOT %result = bf16[3,128,64]{2,1,0} get-tuple-element(%product), index=3
    }
    """)  # noqa: E501


def test_slices_within_further_fusions_and_what_is_handed_through() -> None:
    [product] = kernels.kernels(NESTED)
    turn = 4
    assert product.bytes == LAYER + turn + ROWS + ROWS  # a slice of the weights, rows in, a row of the stack out
    assert product.flops == 2 * 128 * 64 * 64
    # Without the reduction, what is returned unchanged is written once more.
    reduction = next(line for line in NESTED.splitlines() if "all-reduce" in line)
    copied = NESTED.replace(reduction, reduction.partition("all-reduce")[0] + "negate(%p0)")
    [product] = kernels.kernels(copied)
    assert product.bytes == LAYER + turn + 2 * ROWS + (2 + 3) * 4 * 32 * 64


VIEW = """
%view (p0: bf16[128,64]) -> bf16[128,64] {
  %p0 = bf16[128,64]{1,0} parameter(0)
  ROOT %same = bf16[128,64]{1,0} bitcast(%p0)
}
"""


def test_an_operand_that_is_viewed_within_a_further_fusion_is_read() -> None:
    line = next(each for each in NESTED.splitlines(keepends=True) if "%dot =" in each)
    seen = "  %seen = bf16[128,64]{1,0} fusion(%p4), kind=kLoop, calls=%view\n" + line.replace("dot(%p4", "dot(%seen")
    head, tail = NESTED.replace(line, seen).split("\n\n", 1)
    viewed = head + "\n" + VIEW + "\n" + tail
    [product] = kernels.kernels(viewed)
    assert product.bytes == LAYER + 4 + ROWS + ROWS
    # What is sliced behind the view is still no more than the slice.
    weights = "    %stacked = bf16[3,64,64]{2,1,0} fusion(%p2), kind=kLoop, calls=%view\n"
    kernel = next(each for each in viewed.splitlines(keepends=True) if "%kernel = bf16[64,64]{1,0} fusion" in each)
    [product] = kernels.kernels(viewed.replace(kernel, weights + kernel.replace("fusion(%p2", "fusion(%stacked")))
    assert product.bytes == LAYER + 4 + ROWS + ROWS
    # A fusion that is a view and nothing else copies: it reads and writes.
    copied = (
        f"HloModule copy\n{VIEW}\nENTRY %main (a: bf16[128,64]) -> bf16[128,64] {{\n"
        "  %a = bf16[128,64]{1,0} parameter(0)\n"
        "  ROOT %b = bf16[128,64]{1,0} fusion(%a), kind=kLoop, calls=%view\n}\n"
    )
    [copy] = kernels.kernels(copied)
    assert copy.bytes == 2 * ROWS


def test_a_stack_that_is_read_after_a_row_was_written_is_read_whole() -> None:
    lines = PROGRAM.splitlines(keepends=True)
    written = next(line for line in lines if "ROOT %write" in line)
    twice = written.replace("ROOT ", "") + "  ROOT %twice = bf16[3,128,64]{2,1,0} add(%write, %write)\n"
    found = {kernel.name: kernel for kernel in kernels.kernels(PROGRAM.replace(written, twice))}
    assert found["more"].bytes == 3 * ROWS + ROWS + 4 + 3 * ROWS
    # Within a further fusion, too.
    lines = NESTED.splitlines(keepends=True)
    stack = next(line for line in lines if "%stack =" in line)
    more = stack + "    %twice = bf16[3,128,64]{2,1,0} add(%stack, %stack)\n".lstrip(" ")
    read_on = NESTED.replace(stack, more).replace(
        "tuple(%p0, %p1, %reduced, %stack)", "tuple(%p0, %p1, %reduced, %twice)"
    )
    [product] = kernels.kernels(read_on)
    assert product.bytes == LAYER + 4 + ROWS + 3 * ROWS + 3 * ROWS


def test_the_start_of_a_collective_is_no_kernel() -> None:
    start = """HloModule start

%begin (p0: bf16[8,64]) -> (bf16[8,64], bf16[128,64], u32[]) {
  %p0 = bf16[8,64]{1,0} parameter(0)
  %gathered = bf16[128,64]{1,0} all-gather(%p0), channel_id=3, replica_groups=[1,16]<=[16], dimensions={0}
  ROOT %state = (bf16[8,64]{1,0}, bf16[128,64]{1,0}, u32[]) custom-call(%gathered), custom_call_target="AsyncCollectiveStart"
}

ENTRY %main (a: bf16[8,64]) -> bf16[128,64] {
  %a = bf16[8,64]{1,0} parameter(0)
  %begun = (bf16[8,64]{1,0}, bf16[128,64]{1,0}, u32[]) fusion(%a), kind=kCustom, calls=%begin
  ROOT %whole = bf16[128,64]{1,0} get-tuple-element(%begun), index=1
}
"""  # noqa: E501
    assert kernels.kernels(start) == []
    assert len(kernels.kernels(start.replace("AsyncCollectiveStart", "Sort"))) == 1


def test_products_of_libraries_and_of_full_float32(found: dict[str, kernels.Kernel]) -> None:
    assert found["fmha"].flops == 2 * 2 * (2 * 4 * 10 * 6 * 8)
    assert found["gemm"].flops == found["full"].flops == 2 * 4 * 32 * 16
    assert found["full"].precision == "highest"
    assert found["gemm"].precision == "default"
    assert found["y"].precision == ""
    assert found["full"].bytes == 4 * 32 * 16  # the rest lies in the chip's own memory
    assert found["gemm"].bytes == 4 * 32 * 16 + 4 * 4 * 16  # not its workspace of 64 bytes
    assert found["full"].once(CHIP) == max(4 * 32 * 16 / CHIP.bandwidth, 2 * 4 * 32 * 16 / 67e12)

    tpu = topologies.CHIPS["v5e"]
    peaks = [[chip.peak_of(name) for name in ("", "default", "high", "highest")] for chip in (CHIP, tpu)]
    assert peaks == [[989e12, 494.5e12, 494.5e12, 67e12], [197e12, 197e12, 197e12 / 3, 197e12 / 6]]


def test_each_has_its_kind(found: dict[str, kernels.Kernel]) -> None:
    kinds = {name: kernel.kind for name, kernel in found.items()}
    assert kinds == {
        "y": "products", "more": "norms", "fmha": "attention", "full": "products", "gemm": "products",
        "adam_pass": "optimizer", "less": "other",
    }  # fmt: skip
    shares = kernels.shares(list(found.values()), CHIP)
    assert tuple(shares) == kernels.KINDS
    assert shares["optimizer"] == pytest.approx(4 * FLOAT_LAYER / CHIP.bandwidth)
    assert shares["norms"] == pytest.approx(3 * (2 * ROWS + 4) / CHIP.bandwidth)


def test_what_runs_between_start_and_end_hides_a_reduction(found: dict[str, kernels.Kernel]) -> None:
    [(name, operation)] = hlo.named_collectives(PROGRAM, 2)
    assert (name, operation.times) == ("channel 1", 3)
    beside = found["y"].once(CHIP)

    def hidden(seconds: float, text: str = PROGRAM, runs: int = 3) -> float:
        return kernels.hidden_seconds(text, list(found.values()), CHIP, {name: (seconds, runs)})

    assert hidden(beside / 2) == pytest.approx(3 * beside / 2)
    assert hidden(beside * 2) == pytest.approx(3 * beside)
    # Run once, beside all three turns of the loop.
    assert hidden(beside, runs=1) == pytest.approx(beside)
    assert hidden(beside * 2, runs=1) == pytest.approx(beside * 2)
    assert hidden(beside * 4, runs=1) == pytest.approx(3 * beside)
    never = PROGRAM.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"0"}}')
    assert hidden(beside, never) == 0
    waits = PROGRAM.replace("to_apply=%sum\n", 'to_apply=%sum, backend_config={"is_sync":true}\n')
    assert waits != PROGRAM
    assert hidden(beside, waits) == 0


def test_more_rows_move_no_more_parameters() -> None:
    found = {each.name: each for each in kernels.kernels(PROGRAM, lambda dtype, shape: shape[-2:] == (64, 64))}
    assert {name: kernel.still for name, kernel in found.items()} == {
        "y": LAYER, "more": 0, "fmha": 0, "full": 0, "gemm": 0, "adam_pass": 4 * FLOAT_LAYER, "less": 0,
    }  # fmt: skip
    product = found["y"]
    assert product.once(CHIP, 3.0) == pytest.approx((LAYER + 3 * (4 + 2 * ROWS)) / CHIP.bandwidth)
    fast = dataclasses.replace(CHIP, bandwidth=1e18)
    assert product.once(fast, 3.0) == pytest.approx(3 * 2 * 128 * 64 * 64 / CHIP.peak)

    once, thrice = (kernels.shares(list(found.values()), CHIP, grown) for grown in (1.0, 3.0))
    assert thrice["norms"] == pytest.approx(3 * once["norms"])
    assert thrice["optimizer"] == once["optimizer"]
    beside = {"channel 1": (1.0, 3)}
    hidden = kernels.hidden_seconds(PROGRAM, list(found.values()), CHIP, beside, 3.0)
    assert hidden == pytest.approx(3 * product.once(CHIP, 3.0))


@pytest.mark.compiles
def test_products_in_a_loop_of_a_real_program() -> None:
    def layers(x: jax.Array, weights: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    shapes = jax.ShapeDtypeStruct((32, 48), jnp.float32), jax.ShapeDtypeStruct((5, 48, 48), jnp.float32)
    text = jax.jit(layers).lower(*shapes).compile().as_text()
    total = sum(kernel.flops * kernel.times for kernel in kernels.kernels(text or ""))
    assert total == 5 * 2 * 32 * 48 * 48


def test_a_product_written_as_a_convolution_counts_what_lies_within() -> None:
    """[32,3] products of [25,4] by [4,25], an image of 7 by 7 with a window of 3 by 3, and a plain product."""
    for left, right, out, options, expected in (
        ("32,25,3,4", "32,25,3,4", "32,3,25,25",
         "window={size=32x3 stride=31x2 lhs_dilate=32x3}, dim_labels=0b1f_0o1i->01bf",
         2 * 32 * 3 * 25 * 25 * 4),
        ("8,7,7,5", "3,3,5,6", "8,7,7,6",
         "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
         2 * 8 * 6 * 5 * (3 * 7 - 2) ** 2),
        ("32,48", "48,20", "32,20", "dim_labels=bf_io->bf", 2 * 32 * 48 * 20),
    ):  # fmt: skip
        text = (
            f"HloModule m\n\nENTRY %main (a: bf16[{left}], b: bf16[{right}]) -> bf16[{out}] {{\n"
            f"  %a = bf16[{left}] parameter(0)\n  %b = bf16[{right}] parameter(1)\n"
            f"  ROOT %c = bf16[{out}] convolution(%a, %b), {options}\n}}\n"
        )
        [kernel] = kernels.kernels(text)
        assert kernel.flops == expected
