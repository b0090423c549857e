"""What the reduced precision of responses can do: products with operands of 10 bits in place of float32's 23.

TensorFloat-32 is the coarsest of what `similarity.PRECISION` becomes on an accelerator. NumPy rounds the operands to it
and computes the rest in float64, so nothing here depends on the machine.
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


@pytest.mark.parametrize("spread", [0.5, 3.0])  # patches that hardly differ, and such that a few take all
def test_masks_are_the_same_where_margins_exceed_a_ten_thousandth(spread: float) -> None:
    rng = np.random.default_rng(0)
    topic = rng.normal(size=(ROWS, 1, WIDTH))
    patches = rng.normal(size=(ROWS, PATCHES, WIDTH)) + spread * rng.random((ROWS, PATCHES, 1)) * topic
    tokens = rng.normal(size=(ROWS, TOKENS, WIDTH)) + spread * topic
    exact, coarse = response(patches, tokens, False), response(patches, tokens, True)
    error = np.abs(exact - coarse).max()
    assert error < 0.5e-4, "half the margin: no patch beyond it changes places"
    order = np.argsort(-exact, axis=1, kind="stable")
    margins = np.take_along_axis(exact, order[:, MASKED - 1 : MASKED], 1) - np.take_along_axis(
        exact, order[:, MASKED : MASKED + 1], 1
    )
    mine, other = (np.sort(np.argsort(-r, axis=1, kind="stable")[:, :MASKED], axis=1) for r in (exact, coarse))
    clear = margins[:, 0] > 1e-4
    assert (mine[clear] == other[clear]).all()
    # Where no margin is clear, a patch that the coarse response adds is no further behind than that.
    for row in range(ROWS):
        swapped = np.setdiff1d(other[row], mine[row])
        kept_least = exact[row, mine[row]].min()
        assert (kept_least - exact[row, swapped] < 1e-4).all()


def test_the_rounding_is_that_of_ten_bits() -> None:
    x = np.random.default_rng(1).normal(size=1000)
    error = np.abs(tensor_float(x) / x.astype(np.float32) - 1)
    assert 2**-13 < error.max() <= 2**-11
    assert similarity.PRECISION == "high"
