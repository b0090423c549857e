"""The contrastive loss against formulas in NumPy, whole and in chunks round a ring of devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from mmclip_jax import objectives, sharding
from mmclip_jax.objectives import contrastive

Array = np.ndarray


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def matches(ids: Array) -> Array:
    ids = ids.reshape(len(ids), -1)
    return np.array([[bool(np.any(a == b)) for b in ids] for a in ids])


def soft_target_loss(v: Array, u: Array, s: float, strength: Array, allowed: Array | None = None) -> float:
    """Mean of both directions' cross-entropies with target rows proportional to `strength`."""
    allowed = np.ones_like(strength, bool) if allowed is None else allowed
    losses = []
    for logits, weight in ((s * v @ u.T, strength), (s * u @ v.T, strength.T)):
        total = 0.0
        for row in range(len(v)):
            columns = np.flatnonzero(allowed[row])
            target = weight[row, columns] / weight[row, columns].sum()
            total -= float(target @ log_softmax(logits[row, columns][None])[0])
        losses.append(total / len(v))
    return sum(losses) / 2


def unit(rng: np.random.Generator, *shape: int) -> Array:
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def pairs(seed: int, rows: int = 11, width: int = 7) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return unit(rng, rows, width), unit(rng, rows, width)


def call(v: Array, u: Array, s: float, ids: Array, **options: Any) -> tuple[float, dict[str, float]]:
    loss, metrics = objectives.contrastive_loss(
        jnp.asarray(v, jnp.float32), jnp.asarray(u, jnp.float32), jnp.float32(s), jnp.asarray(ids), **options
    )
    assert loss.dtype == jnp.float32
    assert loss.shape == ()
    return float(loss), {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize("columns", [0, 1, 2, 3])
def test_distinct_texts_give_the_clip_loss(columns: int) -> None:
    v, u = pairs(columns)
    ids = np.arange(11 * max(columns, 1), dtype=np.int32).reshape((11, columns) if columns else 11)
    logits = 1 / 0.07 * v @ u.T
    clip = -(np.trace(log_softmax(logits)) + np.trace(log_softmax(logits.T))) / (2 * len(v))
    loss, metrics = call(v, u, 1 / 0.07, ids)
    assert loss == pytest.approx(clip, abs=1e-5)
    assert (metrics["image_to_text"] + metrics["text_to_image"]) / 2 == pytest.approx(clip, abs=1e-5)
    assert metrics["positives"] == 1.0


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31 - 1), columns=st.integers(0, 3), texts=st.integers(1, 9), scale=st.floats(0.1, 100))
def test_repeated_texts_share_the_target(seed: int, columns: int, texts: int, scale: float) -> None:
    v, u = pairs(seed)
    ids = np.random.default_rng(seed).integers(-texts, texts, (11, columns) if columns else 11).astype(np.int32)
    strength = matches(ids).astype(float)
    loss, metrics = call(v, u, scale, ids)
    assert loss == pytest.approx(soft_target_loss(v, u, scale, strength), rel=2e-5, abs=2e-5)
    assert metrics["positives"] == pytest.approx(strength.sum(axis=1).mean())


def test_rows_match_if_any_column_is_equal_but_not_across_columns() -> None:
    v, u = pairs(3, rows=3)
    # Row 0 and 1 share column 1. Row 2's columns hold the others' values in the other column: no match.
    ids = np.array([[5, 7], [6, 7], [7, 5]], np.int32)
    strength = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1.0]])
    assert call(v, u, 3.0, ids)[0] == pytest.approx(soft_target_loss(v, u, 3.0, strength), abs=1e-6)


def test_embeddings_are_not_normalised_again_and_the_scale_is_no_logarithm() -> None:
    v, u = pairs(4)
    ids = np.arange(11, dtype=np.int32)
    assert call(2 * v, u, 1.5, ids)[0] == pytest.approx(call(v, u, 3.0, ids)[0], abs=1e-6)
    assert call(v, u, 0.0, ids)[0] == pytest.approx(np.log(11), abs=1e-6)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_gradient_is_the_finite_difference_of_the_formula(loss: str) -> None:
    v, u = pairs(5)
    ids = np.array([0, 1, 1, 2, 3, 4, 5, 0, 6, 6, 6], np.int32)
    positive = matches(ids)

    def formula(v: Array, u: Array, s: Array) -> float:
        if loss == "softmax":  # the bias cancels
            return soft_target_loss(v, u, float(s), positive.astype(float))
        return sigmoid_loss(s * v @ u.T - 3.0, positive.astype(float))

    def ours(v: jax.Array, u: jax.Array, s: jax.Array) -> jax.Array:
        return objectives.contrastive_loss(v, u, s, jnp.asarray(ids), loss=loss, logit_bias=-3.0)[0]

    point = [np.asarray(x, np.float64) for x in (v, u, 4.0)]
    gradients = jax.grad(ours, argnums=(0, 1, 2))(*(jnp.asarray(x, jnp.float32) for x in point))
    for which, gradient in enumerate(gradients):
        expected = np.zeros_like(point[which])
        for index in np.ndindex(expected.shape):
            sides = []
            for sign in (1, -1):
                moved = [x.copy() for x in point]
                moved[which][index] += sign * 1e-5
                sides.append(formula(*moved))
            expected[index] = (sides[0] - sides[1]) / 2e-5
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=2e-5)


def sigmoid_loss(logits: Array, strength: Array, allowed: Array | None = None) -> float:
    pair = -strength * -np.logaddexp(0, -logits) - (1 - strength) * -np.logaddexp(0, logits)
    return float(np.where(True if allowed is None else allowed, pair, 0).sum() / len(logits))


@pytest.mark.parametrize("bias", [0.0, -10.0])
def test_sigmoid_is_a_binary_cross_entropy_of_every_pair(bias: float) -> None:
    v, u = pairs(6)
    ids = np.array([0, 1, 1, 2, 3, 4, 5, 0, 6, 6, 6], np.int32)
    expected = sigmoid_loss(10 * v @ u.T + bias, matches(ids).astype(float))
    assert call(v, u, 10.0, ids, loss="sigmoid", logit_bias=bias)[0] == pytest.approx(expected, rel=1e-5)


def kind_agreement(stated: Array) -> Array:
    """Kinds stated alike over kinds that either states, 0 where one states what the other denies."""
    out = np.zeros((len(stated), len(stated)))
    for i, a in enumerate(stated):
        for j, b in enumerate(stated):
            either = np.sum((a != 0) | (b != 0))
            conflict = np.any(a * b < 0)
            out[i, j] = 0 if conflict or not either else np.sum((a == b) & (a != 0)) / either
    return out


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31 - 1), kinds=st.sampled_from([1, 2, 5]))
def test_kinds_targets_follow_the_agreement_with_polarity(seed: int, kinds: int) -> None:
    v, u = pairs(seed)
    rng = np.random.default_rng(seed)
    stated = rng.integers(-1, 2, (11, kinds)).astype(np.int8)
    ids = rng.integers(0, 20, (11, 2)).astype(np.int32)
    strength = np.maximum(matches(ids), kind_agreement(stated.astype(int)))
    loss, _ = call(v, u, 9.0, ids, targets="kinds", stated=jnp.asarray(stated))
    assert loss == pytest.approx(soft_target_loss(v, u, 9.0, strength), rel=2e-5, abs=2e-5)


def support(known: Array, stated: Array) -> Array:
    """The share of a text's kinds that is known of an image, 0 where it says the opposite of one."""
    out = np.zeros((len(known), len(stated)))
    for i, image in enumerate(known):
        for j, text in enumerate(stated):
            says = np.flatnonzero(text)
            if len(says) and not np.any(image * text < 0):
                out[i, j] = np.sum(image[says] == text[says]) / len(says)
    return out


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31 - 1), kinds=st.sampled_from([1, 2, 5]))
def test_known_targets_are_what_texts_say_that_is_known_of_images(seed: int, kinds: int) -> None:
    v, u = pairs(seed)
    rng = np.random.default_rng(seed)
    stated, known = rng.integers(-1, 2, (2, 11, kinds)).astype(np.int8)
    ids = rng.integers(0, 20, (11, 2)).astype(np.int32)
    # Rows are images and columns texts in both directions: not symmetric.
    strength = np.maximum(matches(ids), support(known.astype(int), stated.astype(int)))
    loss, _ = call(v, u, 9.0, ids, targets="known", stated=jnp.asarray(stated), known=jnp.asarray(known))
    assert loss == pytest.approx(soft_target_loss(v, u, 9.0, strength), rel=2e-5, abs=2e-5)


def test_kinds_of_one_disease_are_negatives_where_it_is_known_which() -> None:
    """Two pneumonias of known kinds whose texts both name pneumonia, too, and do not deny each other."""
    v, u = pairs(8, rows=2)
    ids = np.array([[0, 1], [2, 3]], np.int32)
    stated = np.array([[1, 1, 0], [1, 0, 1]], np.int8)  # pneumonia, viral, bacterial
    known = np.array([[1, 1, -1], [1, -1, 1]], np.int8)
    options = {"stated": jnp.asarray(stated), "known": jnp.asarray(known)}
    own_only = call(v, u, 9.0, ids)[0]
    assert call(v, u, 9.0, ids, targets="known", **options)[0] == pytest.approx(own_only, abs=1e-6)
    assert call(v, u, 9.0, ids, targets="kinds", **options)[0] != pytest.approx(own_only, abs=1e-2)


def test_with_kinds_a_normal_report_and_a_no_finding_prompt_are_not_negatives() -> None:
    v, u = pairs(8, rows=3)
    ids = np.array([[0, 1], [2, 3], [4, 5]], np.int32)
    stated = np.array([[1, 0], [1, 0], [0, 1]], np.int8)  # "no finding" twice, then another kind
    strength = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1.0]])
    loss, _ = call(v, u, 9.0, ids, targets="kinds", stated=jnp.asarray(stated))
    assert loss == pytest.approx(soft_target_loss(v, u, 9.0, strength), abs=1e-5)
    assert loss != pytest.approx(call(v, u, 9.0, ids)[0], abs=1e-2)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_across_sources_false_leaves_out_pairs_of_different_sources(loss: str) -> None:
    v, u = pairs(9)
    ids = np.array([0, 1, 1, 2, 3, 4, 5, 0, 6, 6, 6], np.int32)
    source = np.array([0, 0, 1, 1, 1, 0, 2, 2, 2, 0, 1], np.int32)
    allowed = source[:, None] == source[None]
    strength = matches(ids).astype(float)
    got, metrics = call(v, u, 8.0, ids, loss=loss, source=jnp.asarray(source), across_sources=False)
    if loss == "softmax":
        expected = soft_target_loss(v, u, 8.0, strength, allowed)
    else:
        expected = sigmoid_loss(8.0 * v @ u.T, strength, allowed)
    assert got == pytest.approx(expected, rel=1e-5)
    assert metrics["positives"] == pytest.approx((strength * allowed).sum(axis=1).mean())


def test_accuracy_counts_best_matches_that_are_positives() -> None:
    u = np.eye(5)
    v = np.eye(5)[[0, 2, 1, 3, 4]]  # rows 1 and 2 prefer each other's text
    ids = np.arange(5, dtype=np.int32)
    assert call(v, u, 10.0, ids)[1]["accuracy"] == pytest.approx(0.6)
    ids[2] = ids[1]
    assert call(v, u, 10.0, ids)[1]["accuracy"] == pytest.approx(1.0)


def test_bfloat16_embeddings_give_a_float32_loss() -> None:
    v, u = (np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for x in pairs(11))
    ids = np.arange(11, dtype=np.int32)
    loss, _ = objectives.contrastive_loss(
        jnp.asarray(v, jnp.bfloat16), jnp.asarray(u, jnp.bfloat16), 20.0, jnp.asarray(ids)
    )
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(soft_target_loss(v, u, 20.0, np.eye(11)), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"loss": "hinge"}, "hinge"),
        ({"targets": "labels"}, "labels"),
        ({"targets": "kinds"}, "stated"),
        ({"targets": "known", "stated": jnp.zeros((11, 2), jnp.int8)}, "known"),
        ({"across_sources": False}, "source"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(options: dict[str, Any], word: str) -> None:
    v, u = pairs(12)
    with pytest.raises(ValueError, match=word):
        call(v, u, 1.0, np.arange(11, dtype=np.int32), **options)


# ---------------------------------------------------------------------------------------------------------------------
# In chunks round a ring of devices


@pytest.mark.parametrize("fsdp", [0, 1, 4])
@pytest.mark.parametrize(
    ("loss", "targets", "across"),
    [
        ("softmax", "text", True),
        ("softmax", "kinds", False),
        ("sigmoid", "kinds", True),
        ("sigmoid", "text", False),
        ("softmax", "known", True),
        ("sigmoid", "known", False),
    ],
)
def test_chunks_round_a_ring_give_the_same_loss_and_gradients(fsdp: int, loss: str, targets: str, across: bool) -> None:
    """Of 40 rows, 5 on each of 8 devices in chunks of 2 (a tail of 1), or all on one (fsdp 0) in chunks of 7."""
    rng = np.random.default_rng(3)
    v, u = (np.asarray(x, np.float32) for x in pairs(3, 40))
    ids, source, stated, known = (
        jnp.asarray(rng.integers(0, 19, (40, 2)), jnp.int32),
        jnp.asarray(rng.integers(0, 2, 40), jnp.int32),
        jnp.asarray(rng.integers(-1, 2, (40, 5)), jnp.int8),
        jnp.asarray(rng.integers(-1, 2, (40, 5)), jnp.int8),
    )

    def both(chunk: int) -> Any:
        def compute(v: jax.Array, u: jax.Array, scale: jax.Array, bias: jax.Array) -> Any:
            return objectives.contrastive_loss(
                v, u, scale, ids, loss=loss, targets=targets, stated=stated, known=known, source=source,
                across_sources=across, logit_bias=bias, chunk=chunk,
            )  # fmt: skip

        return tiny.jit(jax.value_and_grad(compute, argnums=(0, 1, 2, 3), has_aux=True))

    arguments = (v, u, jnp.float32(14.0), jnp.float32(-3.0 if loss == "sigmoid" else 0.0))
    (expected, metrics), gradients = both(-1)(*arguments)
    if fsdp:
        mesh = sharding.make_mesh(fsdp)
        with jax.set_mesh(mesh):
            rows = jax.device_put(arguments[:2], sharding.batch_sharding(mesh))
            (got, got_metrics), got_gradients = both(2)(*rows, *arguments[2:])
    else:
        (got, got_metrics), got_gradients = both(7)(*arguments)
    assert float(got) == pytest.approx(float(expected), rel=1e-6)
    for name, value in metrics.items():
        assert float(got_metrics[name]) == pytest.approx(float(value), rel=1e-6), name
    for a, b in zip(gradients, got_gradients, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 * max(1.0, float(np.abs(a).max())))
    assert float(np.abs(gradients[0]).max()) > 1e-3


def test_chunks_are_taken_where_the_logits_would_not_fit() -> None:
    assert contrastive.chunk_of(0, 4096, 1) == -1
    assert contrastive.chunk_of(0, 8192, 1) == 4096
    assert contrastive.chunk_of(0, 8192, 8) == -1
    assert contrastive.chunk_of(0, 32768, 8) == 8192
    assert [contrastive.chunk_of(setting, 32768, 8) for setting in (-1, 5)] == [-1, 5]
    assert [contrastive.columns_in_chunks(8, chunk) for chunk in (-1, 3, 4, 100)] == [8, 9, 8, 8]
