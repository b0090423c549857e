"""AdamW, its schedule, its clipping and what it decays, against NumPy float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from mmclip_jax.train import optim


def settings(**changes: Any) -> Any:
    return tiny.config(**{f"optimizer__{name}": value for name, value in changes.items()}).optimizer


@pytest.mark.parametrize(("steps", "share", "warmup"), [(200, 0.05, 10), (100, 0.2, 20), (7, 0.05, 0), (1, 0.0, 0)])
def test_the_rate_rises_in_a_line_and_falls_as_a_cosine(steps: int, share: float, warmup: int) -> None:
    rate = optim.learning_rate(settings(peak_lr=3e-4, warmup_share=share), steps)
    for number in range(steps + 1):
        if number < warmup:
            expected = 3e-4 * number / warmup
        else:
            expected = 3e-4 * 0.5 * (1 + np.cos(np.pi * (number - warmup) / max(steps - warmup, 1)))
        assert float(rate(number)) == pytest.approx(expected, rel=1e-5, abs=1e-9), number


def test_kernels_and_embeddings_are_decayed_and_nothing_else() -> None:
    for pool in ("mean", "cls", "map"):
        _, params = tiny.model_and_params(tiny.config(model__pool=pool))
        for path, decayed in jax.tree.leaves_with_path(optim.decay_mask(params)):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            assert decayed == name.endswith(("/kernel", "/embedding")), name
    names = {"log_logit_scale", "logit_bias", "pool_query"}
    assert names <= set(params)
    assert not any(optim.decay_mask(params)[name] for name in names)


def adamw(params: dict[str, Any], gradients: list[dict[str, Any]], config: Any, steps: int) -> dict[str, np.ndarray]:
    """Clip by global norm, Adam with bias correction, decoupled decay of "kernel"."""
    values = {name: np.asarray(x, np.float64) for name, x in params.items()}
    first = {name: np.zeros_like(x) for name, x in values.items()}
    second = {name: np.zeros_like(x) for name, x in values.items()}
    rate = optim.learning_rate(config, steps)
    for number, gradient in enumerate(gradients):
        norm = np.sqrt(sum(np.sum(np.square(np.float64(g))) for g in gradient.values()))
        for name, raw in gradient.items():
            g = np.float64(raw) * min(1.0, config.clip / norm)
            first[name] = config.b1 * first[name] + (1 - config.b1) * g
            second[name] = config.b2 * second[name] + (1 - config.b2) * g**2
            m = first[name] / (1 - config.b1 ** (number + 1))
            v = second[name] / (1 - config.b2 ** (number + 1))
            decay = config.weight_decay * values[name] if name == "kernel" else 0.0
            values[name] = values[name] - float(rate(number)) * (m / (np.sqrt(v) + config.eps) + decay)
    return values


@pytest.mark.parametrize("clip", [0.5, 1e9])
def test_updates_are_clipped_adamw(clip: float) -> None:
    rng = np.random.default_rng(0)

    def draw(scale: float) -> dict[str, Any]:
        return {
            name: jnp.asarray(scale * rng.normal(size=shape), jnp.float32)
            for name, shape in {"kernel": (3, 5), "bias": (7,), "scale": (2,)}.items()
        }

    config = settings(peak_lr=0.03, warmup_share=0.25, weight_decay=0.2, clip=clip)
    params = draw(1.0)
    # Norms from far below to far above the clip, so that clipping is not a mere change of scale.
    gradients = [draw(scale) for scale in (0.01, 30.0, 0.02, 0.1, 3.0)]
    optimizer = optim.make_optimizer(config, 8)
    state, current = optimizer.init(params), params
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, current)
        current = optax.apply_updates(current, updates)
    expected = adamw(params, gradients, config, 8)
    for name, value in expected.items():
        np.testing.assert_allclose(current[name], value, rtol=2e-5, atol=2e-6, err_msg=name)
    unclipped = adamw(params, gradients, settings(peak_lr=0.03, warmup_share=0.25, weight_decay=0.2, clip=1e9), 8)
    assert (np.abs(unclipped["kernel"] - expected["kernel"]).max() > 1e-3) == (clip == 0.5)


def test_decay_shrinks_kernels_without_a_gradient_and_leaves_the_rest() -> None:
    config = settings(peak_lr=0.1, warmup_share=0.0, weight_decay=0.5)
    optimizer = optim.make_optimizer(config, 10)
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(5), "position": jnp.ones((2, 2))}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5, rtol=1e-6)
    assert not np.any(updates["bias"])
    assert not np.any(updates["position"])
