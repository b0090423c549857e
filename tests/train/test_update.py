"""One optimizer step: projection of the logit scale, refusal of what is not finite, average, precision."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from mmclip_jax import check
from mmclip_jax.check import compiler_options
from mmclip_jax.errors import UserError
from mmclip_jax.state import SpikeGuard, TrainState
from mmclip_jax.train import optim, step

pytestmark = pytest.mark.compiles

CHANGES = {"data__batch_paired": 8, "data__batch_unpaired": 8, "train__steps": 50, "optimizer__warmup_share": 0.0}


def make(compiler_options: dict[str, Any] | None = None, **changes: Any) -> tuple[Any, TrainState, ConfigDict]:
    """(compiled train step, state, config)."""
    config = tiny.config(**CHANGES | changes)
    model, params = tiny.model_and_params(config)
    optimizer = optim.make_optimizer(config.optimizer, config.train.steps)
    schedule = optim.learning_rate(config.optimizer, config.train.steps)
    function = step.make_train_step(model, config, optimizer, schedule, tiny.MASK_ID)
    train_step = (
        tiny.jit(function) if compiler_options is None else jax.jit(function, compiler_options=compiler_options)
    )
    ema = jax.tree.map(jnp.copy, params) if config.optimizer.ema else None
    return train_step, TrainState(jnp.int32(0), params, optimizer.init(params), ema), config


@pytest.fixture(scope="module")
def plain() -> Any:
    return make(objective__attmim__random_share=0.1)


def with_parameters(state: TrainState, **values: Any) -> TrainState:
    return dataclasses.replace(state, params=state.params | values)


def with_scale(state: TrainState, scale: float) -> TrainState:
    return with_parameters(state, log_logit_scale=jnp.float32(np.log(scale)))


@pytest.mark.slow
def test_one_executable_serves_random_and_attention_steps(plain: Any) -> None:
    train_step, state, config = plain
    batch, at_random = tiny.batch(config), []
    for _ in range(8):
        state, metrics = train_step(state, batch)
        at_random.append(float(metrics["attmim/random"]))
        assert float(metrics["finite"]) == 1
    assert at_random == [1] * 5 + [0] * 3
    assert train_step._cache_size() == 1
    assert int(state.step) == 8
    assert float(metrics["learning_rate"]) == pytest.approx(optim.learning_rate(config.optimizer, 50)(7))


@pytest.mark.slow
def test_the_loss_falls_on_a_batch_that_is_seen_again_and_again() -> None:
    train_step, state, config = make(optimizer__peak_lr=3e-3, optimizer__clip=100.0)
    batch, losses = tiny.batch(config), []
    for _ in range(30):
        state, metrics = train_step(state, batch)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_the_logit_scale_is_projected_and_its_gradient_lives(plain: Any) -> None:
    train_step, state, config = plain
    batch = tiny.batch(config)
    model = tiny.build_model(config.model)

    def loss(scale: jax.Array, params: Any) -> jax.Array:
        params = params | {"log_logit_scale": scale}
        return step.compute_loss(model, config, tiny.MASK_ID, params, jnp.int32(0), batch)[0]

    gradient = tiny.jit(jax.grad(loss))
    for scale in (99.9999, 100.0, 150.0):
        after, _ = train_step(with_scale(state, scale), batch)
        assert float(jnp.exp(after.params["log_logit_scale"])) <= 100.0 * (1 + 1e-5)
        assert abs(float(gradient(jnp.float32(np.log(scale)), state.params))) > 1e-3


def test_a_scale_that_wants_to_grow_stays_at_one_hundred_and_can_come_back() -> None:
    params = {"log_logit_scale": jnp.float32(np.log(100.0) + 0.5), "kernel": jnp.ones(3)}
    projected = step.project_parameters(params)
    assert float(projected["log_logit_scale"]) == pytest.approx(np.log(100.0))
    np.testing.assert_array_equal(projected["kernel"], params["kernel"])
    below = {"log_logit_scale": jnp.float32(-3.0)}
    assert float(step.project_parameters(below)["log_logit_scale"]) == -3.0


@pytest.mark.parametrize("poison", [np.inf, np.nan])
def test_a_step_that_is_not_finite_changes_nothing(plain: Any, poison: float) -> None:
    train_step, state, config = plain
    batch = tiny.batch(config)
    state, _ = train_step(state, batch)
    bad = with_parameters(state, log_logit_scale=jnp.float32(poison))
    after, metrics = train_step(bad, batch)
    assert float(metrics["finite"]) == 0
    for name in ("params", "opt_state", "ema"):
        for old, new in zip(jax.tree.leaves(getattr(bad, name)), jax.tree.leaves(getattr(after, name)), strict=True):
            np.testing.assert_array_equal(old, new)
    good, metrics = train_step(state, batch)
    assert float(metrics["finite"]) == 1
    assert tiny.largest_difference(good.params, state.params) > 0


def test_updates_left_out_in_a_row_are_counted(plain: Any) -> None:
    train_step, state, config = plain
    batch = tiny.batch(config)
    counts = []
    for poison in (None, np.nan, np.nan, None, np.nan):
        bad = state if poison is None else with_parameters(state, log_logit_scale=jnp.float32(poison))
        after, metrics = train_step(bad, batch)
        counts.append(float(metrics["skipped"]))
        state = after if poison is None else dataclasses.replace(state, step=after.step, guard=after.guard)
    assert counts == [0, 1, 2, 0, 1]
    assert int(state.guard.updates) == 2
    assert int(state.step) == 5


def test_a_spike_changes_nothing_and_leaves_the_mean_alone() -> None:
    train_step, state, config = make(train__spike=2.0)
    batch = tiny.batch(config)
    means, losses = [], []
    for _ in range(3):
        state, metrics = train_step(state, batch)
        means.append(float(state.guard.loss))
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(means, np.cumsum(losses) / [1, 2, 3], rtol=1e-6)

    def judged(mean: float, updates: int) -> tuple[Any, Any]:
        guard = SpikeGuard(jnp.float32(mean), jnp.int32(updates), jnp.int32(0))
        return train_step(dataclasses.replace(state, guard=guard), batch)

    loss = float(train_step(state, batch)[1]["loss"])
    for mean, updates, left_out in (
        (loss / 2.1, step.SPIKE_WINDOW, True), (loss / 1.9, step.SPIKE_WINDOW, False), (loss / 2.1, 99, False),
    ):  # fmt: skip
        after, metrics = judged(mean, updates)
        assert float(metrics["skipped"]) == left_out
        assert float(metrics["finite"]) == 1
        assert (tiny.largest_difference(after.params, state.params) == 0) == left_out
        assert (tiny.largest_difference(after.ema, state.ema) == 0) == left_out
        assert (tiny.largest_difference(after.opt_state, state.opt_state) == 0) == left_out
        assert int(after.guard.updates) == updates + (not left_out)
        expected = mean if left_out else mean + (loss - mean) / 100
        assert float(after.guard.loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_the_demos_compiler_options_still_see_what_is_not_finite() -> None:
    """Fast math may assume that there is no NaN; the code is optimised in full here, as in a real run."""
    options = compiler_options(tiny.load_config("demo").train.compiler_options)
    train_step, state, config = make(options)
    batch = tiny.batch(config)
    assert float(train_step(state, batch)[1]["finite"]) == 1
    for poison in (np.inf, -np.inf, np.nan):
        kernel = state.params["text_projection"]["kernel"].at[0, 0].set(poison)
        after, metrics = train_step(with_parameters(state, text_projection={"kernel": kernel}), batch)
        assert float(metrics["finite"]) == 0, poison
        assert tiny.largest_difference(after.params["text_encoder"], state.params["text_encoder"]) == 0


def test_the_average_follows_the_parameters(plain: Any) -> None:
    train_step, state, config = plain
    expected = jax.tree.map(np.float64, state.ema)
    for number in range(3):
        state, _ = train_step(state, tiny.batch(config))
        decay = min(config.optimizer.ema, (1 + number) / (10 + number))
        expected = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * np.float64(p), expected, state.params)
    assert tiny.largest_difference(expected, state.ema) < 1e-6
    assert tiny.largest_difference(state.params, state.ema) > 1e-6


def test_a_step_depends_on_the_seed_and_the_step_alone(plain: Any) -> None:
    train_step, state, config = plain
    first, _ = train_step(state, tiny.batch(config))
    again, _ = train_step(state, tiny.batch(config))
    assert tiny.largest_difference(first.params, again.params) == 0


@pytest.mark.slow
def test_bfloat16_computes_float32_losses_with_float32_parameters(plain: Any) -> None:
    exact, exact_state, config = plain
    rough, state, _ = make(objective__attmim__random_share=0.1, optimizer__ema=0.0, model__dtype="bfloat16")
    batch = tiny.batch(config)
    _, expected = exact(exact_state, batch)
    after, metrics = rough(state, batch)
    assert after.ema is None
    assert {x.dtype for x in jax.tree.leaves(after.params)} == {jnp.dtype(jnp.float32)}
    assert {value.dtype for value in metrics.values()} == {jnp.dtype(jnp.float32)}
    assert float(metrics["loss"]) != float(expected["loss"])
    assert float(metrics["loss"]) == pytest.approx(float(expected["loss"]), rel=0.05)
    assert float(metrics["entmlm/loss"]) == pytest.approx(float(expected["entmlm/loss"]), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"model__remat": True}, {"model__unroll": True}])
def test_recomputing_and_unrolling_give_the_same_update(plain: Any, changes: dict[str, Any]) -> None:
    train_step, state, config = plain
    other, _, _ = make(objective__attmim__random_share=0.1, **changes)
    batch = tiny.batch(config)
    _, expected = train_step(state, batch)
    _, metrics = other(state, batch)
    assert tiny.largest_difference(expected, metrics) < 1e-4


@pytest.mark.parametrize(
    ("changes", "devices", "word"),
    [
        ({"objective__attmim__strategy": "top"}, 1, "attmim.strategy='top'"),
        ({"objective__attmim__response": "dot"}, 1, "attmim.response='dot'"),
        ({"objective__attmim__mask_at": "output"}, 1, "attmim.mask_at='output'"),
        ({"objective__entmlm__strategy": "word"}, 1, "entmlm.strategy='word'"),
        ({"objective__contrastive__loss": "hinge"}, 1, "contrastive.loss='hinge'"),
        ({"objective__contrastive__targets": "labels"}, 1, "contrastive.targets='labels'"),
        ({"data__batch_paired": 12}, 8, "data.batch_paired=12"),
        ({"optimizer__accumulate": 3}, 1, "accumulate=3"),
        ({"data__batch_paired": 0, "data__batch_unpaired": 0}, 1, "both 0"),
        ({"objective__entmlm__slots": 12}, 1, "slots"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused_by_name(changes: dict[str, Any], devices: int, word: str) -> None:
    with pytest.raises(UserError, match=word):
        check.check_config(tiny.config(**CHANGES | changes), devices)


def test_good_settings_pass() -> None:
    check.check_config(tiny.config(), 8)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"objective__attmim__mask_ratio": 1.5}, "mask_ratio"),
        ({"objective__attmim__mask_ratio": 0.0}, "mask_ratio"),  # the mean over no patches is not a number
        ({"objective__attmim__hint": -0.1}, "hint"),
        ({"objective__attmim__temperature": 0.0}, "attmim.temperature"),
        ({"objective__entmlm__slots": 0}, "slots"),
        ({"objective__local__weight": 1.0, "objective__local__temperature": 0.0}, "local.temperature"),
        ({"optimizer__accumulate": 0}, "accumulate"),
        ({"train__profile": -1}, "profile"),
        ({"data__batch_paired": -16}, "batch_paired"),
        ({"model__patch_size": 0}, "patch_size"),
        ({"model__text__vocab_size": -5}, "vocab_size"),
        ({"model__text_decoder__heads": 0}, "text_decoder.heads"),
    ],
)
def test_numbers_that_cannot_work_are_refused_by_name(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        check.check_config(tiny.config(**CHANGES | changes), 1)
