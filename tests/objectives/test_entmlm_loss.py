"""Sums of restored tokens against formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from mmclip_jax.objectives import entmlm

Array = np.ndarray


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def test_restoration_sums_are_weighted_cross_entropies() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(3, 5, 17))
    tokens = rng.integers(0, 17, (3, 11)).astype(np.int32)
    positions = np.stack([rng.permutation(11)[:5] for _ in range(3)]).astype(np.int32)
    weights = (rng.random((3, 5)) < 0.6).astype(np.float32)
    weights[2] = 0
    logits[0, 1, tokens[0, positions[0, 1]]] = 9.0
    weights[0, 1] = 1
    expected: dict[str, list[float]] = {"loss": [], "correct": [], "count": []}
    for b in range(3):
        target = tokens[b, positions[b]]
        expected["loss"].append(float(-(weights[b] * log_softmax(logits[b])[np.arange(5), target]).sum()))
        expected["correct"].append(float((weights[b] * (logits[b].argmax(axis=1) == target)).sum()))
        expected["count"].append(float(weights[b].sum()))
    got = entmlm.restoration_sums(
        jnp.asarray(logits, jnp.float32), jnp.asarray(tokens), jnp.asarray(positions), jnp.asarray(weights)
    )
    assert expected["correct"][0] >= 1
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, rtol=1e-5, err_msg=name)


def test_unused_slots_have_no_gradient() -> None:
    rng = np.random.default_rng(2)
    logits = jnp.asarray(rng.normal(size=(2, 3, 17)), jnp.float32)
    tokens, positions = jnp.asarray(rng.integers(0, 17, (2, 7))), jnp.asarray([[0, 2, 4], [1, 3, 5]])
    weights = jnp.asarray([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    gradient = jax.grad(lambda x: entmlm.restoration_sums(x, tokens, positions, weights)["loss"].sum())(logits)
    assert np.abs(gradient[0, 0]).max() > 0
    assert not np.any(gradient[0, 1])
    assert not np.any(gradient[1])
