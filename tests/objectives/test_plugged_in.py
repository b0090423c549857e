"""An objective that the package does not have: registered, trained, measured, counted and checked like its own."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from mmclip_jax import check, flops, objectives, sharding
from mmclip_jax.errors import UserError
from mmclip_jax.models import inputs
from mmclip_jax.models.work import product
from mmclip_jax.objectives.base import Context, Encoded, Flops, Metrics, Objective, Rows
from mmclip_jax.plan import plan
from mmclip_jax.ranges import Number, Range
from mmclip_jax.state import TrainState
from mmclip_jax.train import optim, step

pytestmark = pytest.mark.compiles

STEPS = 4
ALONE = {"objective__attmim__weight": 0.0, "objective__entmlm__weight": 0.0}
BLOCK = {"weight": 0.7, "floor": 0.9, "covariance": 0.3}


class Variance(Objective):
    """Image embeddings shall spread: a floor under the deviation of each number, and no covariance (VICReg)."""

    name = "variance"
    ranges: ClassVar[Mapping[str, Range]] = {"weight": Number(0), "floor": Number(0), "covariance": Number(0)}

    def check(self, config: ConfigDict) -> None:
        if (floor := self.settings(config).floor) > 1:
            raise UserError(f"objective.variance.floor={floor} is above 1: unit vectors spread less")

    def rows(self, context: Context, encoded: Encoded) -> Rows:
        return {"embed": encoded.image_embed}

    def loss(self, context: Context, rows: Rows) -> tuple[jax.Array, Metrics]:
        settings, embed = self.settings(context.config), rows["embed"]
        centred = embed - embed.mean(axis=0, keepdims=True)
        covariance = jnp.einsum("bi,bj->ij", centred, centred, precision="highest") / (len(embed) - 1)
        spread = jnp.sqrt(jnp.diag(covariance) + 1e-4)
        others = covariance - jnp.diag(jnp.diag(covariance))
        loss = jnp.maximum(settings.floor - spread, 0).mean()
        return loss + settings.covariance * jnp.square(others).sum() / embed.shape[1], {"spread": spread.mean()}

    def flops(self, config: ConfigDict, sizes: Mapping[str, int]) -> Flops:
        return Flops(pairs=product(config.model.embed_dim, sum(sizes.values()), config.model.embed_dim))


@pytest.fixture
def registered() -> Iterator[None]:
    objectives.register(Variance())
    yield
    del objectives.OBJECTIVES["variance"]


def settings(**changes: Any) -> ConfigDict:
    config = tiny.config(**ALONE | {"optimizer__peak_lr": 3e-3, "optimizer__ema": 0.0, "train__steps": STEPS})
    config.objective.variance = ConfigDict(BLOCK)
    config.model.image.depth = config.model.text.depth = 1
    config.data.batch_unpaired = 16  # 32 rows: two chunks on eight devices
    for name, value in changes.items():
        group, _, setting = name.partition("__")
        (config.optimizer if group == "optimizer" else config.objective[group])[setting] = value
    return config


def train(config: ConfigDict, devices: int) -> list[dict[str, float]]:
    """The metrics of every step."""
    mesh = sharding.make_mesh(1, jax.devices()[:devices])
    model, params = tiny.model_and_params(config)
    optimizer = optim.make_optimizer(config.optimizer, STEPS)
    schedule = optim.learning_rate(config.optimizer, STEPS)
    update = step.make_train_step(model, config, optimizer, schedule, tiny.MASK_ID)
    state = TrainState(jnp.int32(0), params, optimizer.init(params), None)
    shardings = sharding.tree_shardings(state, mesh)
    found = []
    with jax.set_mesh(mesh):
        compiled = tiny.jit(update, out_shardings=(shardings, sharding.replicated(mesh)))
        state = jax.device_put(state, shardings)
        for number in range(STEPS):
            state, metrics = compiled(state, sharding.to_devices(tiny.batch(config, number), mesh))
            found.append({name: float(value) for name, value in metrics.items()})
    return found


@functools.cache
def on_one_device() -> list[dict[str, float]]:
    return train(settings(), 1)


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "accumulate"), [(1, 2), (8, 1), (8, 2)])
def test_it_trains_alike_on_one_device_and_eight_whole_and_in_chunks(
    registered: None, devices: int, accumulate: int
) -> None:
    expected, found = on_one_device(), train(settings(optimizer__accumulate=accumulate), devices)
    for name in ("loss", "variance/loss", "variance/spread", "contrastive/loss", "gradient_norm"):
        mine, others = ([each[name] for each in metrics] for metrics in (found, expected))
        np.testing.assert_allclose(mine, others, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_it_adds_to_the_total_and_moves_the_parameters(registered: None) -> None:
    expected, without = on_one_device(), train(settings(variance__weight=0.0), 1)
    for each in expected:
        assert each["loss"] == pytest.approx(each["contrastive/loss"] + 0.7 * each["variance/loss"], rel=1e-6)
    assert "variance/loss" not in without[0]
    assert expected[0]["contrastive/loss"] == pytest.approx(without[0]["contrastive/loss"], rel=1e-6)
    assert expected[-1]["contrastive/loss"] != pytest.approx(without[-1]["contrastive/loss"], rel=1e-3)


def test_its_loss_is_that_of_numpy_and_its_gradient_has_a_norm_of_its_own(registered: None) -> None:
    config = settings()
    model, params = tiny.model_and_params(config)
    batch = tiny.batch(config)
    images = jnp.asarray(np.concatenate([rows["image"] for rows in batch.values()]))
    encode = tiny.jit(lambda p, x: model.apply(p, inputs.standardize(inputs.pixels(x)), method="encode_image")[1])
    embed = np.asarray(encode({"params": params}, images), np.float64)
    covariance = np.cov(embed, rowvar=False)
    hinge = np.maximum(0.9 - np.sqrt(np.diag(covariance) + 1e-4), 0).mean()
    expected = hinge + 0.3 * (np.square(covariance).sum() - np.square(np.diag(covariance)).sum()) / tiny.EMBED
    compiled = tiny.jit(functools.partial(step.compute_loss, model, config, tiny.MASK_ID))
    assert float(compiled(params, jnp.int32(0), batch)[1]["variance/loss"]) == pytest.approx(expected, rel=1e-5)
    norms = tiny.jit(functools.partial(step.loss_gradient_norms, model, config, tiny.MASK_ID))(
        params, jnp.int32(0), batch
    )
    assert norms.keys() == {"gradient_norm/contrastive", "gradient_norm/variance"}
    assert float(norms["gradient_norm/variance"]) > 1e-3


def test_its_work_is_counted(registered: None) -> None:
    config = settings()
    rows = config.data.batch_paired + config.data.batch_unpaired
    assert flops.train_step_flops(config)["variance"] == 3 * 2 * tiny.EMBED * rows * tiny.EMBED
    config.objective.variance.weight = 0.0
    assert flops.train_step_flops(config)["variance"] == 0
    assert plan.make_plan(settings(), "h100:8x1").asked.work["variance"] > 0


@pytest.mark.parametrize(("name", "value"), [("weight", -1.0), ("floor", float("nan")), ("floor", 1.5)])
def test_its_settings_are_checked(registered: None, name: str, value: float) -> None:
    check.check_config(settings(), 8)
    with pytest.raises(UserError, match=rf"^objective\.variance\.{name}="):
        check.check_config(settings(**{f"variance__{name}": value}), 8)


def test_fields_that_no_batch_has_are_refused(registered: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Variance, "fields", ("image", "age"))
    with pytest.raises(UserError, match=r"objective\.variance needs the fields age"):
        check.check_config(settings(), 8)


def test_a_block_that_nobody_registered_is_refused() -> None:
    with pytest.raises(UserError, match=r"objective\.variance: there is no such objective"):
        check.check_config(settings(), 8)


def test_a_name_is_taken_once(registered: None) -> None:
    class Other(Variance):
        """Of the same name."""

    with pytest.raises(ValueError, match="variance"):
        objectives.register(Other())
    objectives.register(Variance())
