"""What the reduced precision of responses can do: products with operands of 10 bits in place of float32's 23.

TensorFloat-32 is the coarsest of what `similarity.PRECISION` becomes on an accelerator. NumPy rounds the operands to it
and computes the rest in float64, so nothing here depends on the machine.

If no cosine is off by more than e, a softmax r of temperature t changes by at most r (exp(2 e / t) - 1). The K-th
largest of responses that sum to 1 is at most 1 / K. So patches at the border of the mask come nearer to each other by
at most 2 (exp(2 e / t) - 1) / K. For the worst rounding e is 2^-10, which gives 4e-4; the roundings of 512 products are
not all of one sign, and e is measured here.
"""

import numpy as np
import pytest

from mmclip_jax.models import similarity

Array = np.ndarray
ROWS, PATCHES, TOKENS, WIDTH, TEMPERATURE, MASKED = 24, 196, 24, 512, 0.1, 98


def tensor_float(x: Array) -> Array:
    """Rounded to the nearest number with 10 bits behind the point, in float64."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x1000) & 0xFFFFE000).astype(np.uint32).view(np.float32).astype(np.float64)


def response(patches: Array, tokens: Array, rounded: bool) -> Array:
    """r [B,N] as docs/method.md has it, all tokens alike."""
    patches, tokens = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (patches, tokens))
    if rounded:
        patches, tokens = tensor_float(patches), tensor_float(tokens)
    logits = np.einsum("bnd,bld->bln", patches, tokens) / TEMPERATURE
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True)).mean(axis=1)


def draw(rng: np.random.Generator, spread: float, answering: int) -> tuple[Array, Array]:
    """(patches [B,N,D], tokens [B,L,D]): the first `answering` patches share the tokens' topic, by up to `spread`."""
    topic = rng.normal(size=(ROWS, 1, WIDTH))
    share = spread * rng.random((ROWS, PATCHES, 1))
    share[:, answering:] = 0
    patches = rng.normal(size=(ROWS, PATCHES, WIDTH)) + share * topic
    return patches, rng.normal(size=(ROWS, TOKENS, WIDTH)) + spread * topic


# Patches that hardly differ; such that a few take all; few that answer at all, so that the border is among the others.
@pytest.mark.parametrize(("spread", "answering"), [(0.5, PATCHES), (3.0, PATCHES), (3.0, 8), (10.0, 2)])
def test_masks_are_the_same_where_margins_exceed_a_ten_thousandth(spread: float, answering: int) -> None:
    patches, tokens = draw(np.random.default_rng(0), spread, answering)
    exact, coarse = response(patches, tokens, False), response(patches, tokens, True)
    order = np.argsort(-exact, axis=1, kind="stable")
    places = np.take_along_axis(exact, order, 1)
    assert (places[:, MASKED - 1] <= 1 / MASKED).all()
    kept, left = order[:, :MASKED], order[:, MASKED:]
    # What comes nearer: the least of those that are kept, and the most of those that are left.
    lost = (exact - coarse)[np.arange(ROWS)[:, None], kept].max(axis=1)
    won = (coarse - exact)[np.arange(ROWS)[:, None], left].max(axis=1)
    at_border = np.abs(exact - coarse) / exact * places[:, MASKED - 1 : MASKED]
    assert 2 * at_border.max() < 1e-4, "no pair at the border comes nearer by more than the margin"
    mine, other = (np.sort(np.argsort(-r, axis=1, kind="stable")[:, :MASKED], axis=1) for r in (exact, coarse))
    same = (mine == other).all(axis=1)
    assert same[places[:, MASKED - 1] - places[:, MASKED] > 1e-4].all()
    assert same[places[:, MASKED - 1] - places[:, MASKED] > lost + won].all()
    # Where no margin is clear, a patch that the coarse response adds is no further behind than that.
    for row in range(ROWS):
        swapped = np.setdiff1d(other[row], mine[row])
        assert (exact[row, mine[row]].min() - exact[row, swapped] < 1e-4).all()


def test_cosines_are_off_by_far_less_than_the_worst_rounding() -> None:
    for spread, answering in ((0.5, PATCHES), (3.0, PATCHES), (10.0, 2)):
        patches, tokens = (
            x / np.linalg.norm(x, axis=-1, keepdims=True) for x in draw(np.random.default_rng(1), spread, answering)
        )
        exact = np.einsum("bnd,bld->bln", patches, tokens)
        off = np.abs(np.einsum("bnd,bld->bln", tensor_float(patches), tensor_float(tokens)) - exact).max()
        assert 2 * np.expm1(2 * off / TEMPERATURE) / MASKED < 1e-4, "the bound of this file's head, with what is seen"
        assert off < 2**-12


def test_the_rounding_is_that_of_ten_bits() -> None:
    x = np.random.default_rng(1).normal(size=1000)
    error = np.abs(tensor_float(x) / x.astype(np.float32) - 1)
    assert 2**-13 < error.max() <= 2**-11
    assert similarity.PRECISION == "high"
