"""The optimizer's state cut along the data axis: the same updates, less memory, and it moves to other meshes."""

import functools
import pathlib
from typing import Any

import jax
import pytest
import tiny
from test_checkpoints import iterator, run

from mmclip_jax import sharding
from mmclip_jax.checkpoints import Checkpoints, abstract_like
from mmclip_jax.config import transformer
from mmclip_jax.state import TrainState
from mmclip_jax.train import optim, step

pytestmark = pytest.mark.compiles
STEPS = 2


def config(shard_optimizer: bool) -> Any:
    """The contrastive loss alone: what is cut does not depend on the objectives, and masks would hang on rounding."""
    settings = tiny.config(
        mesh__shard_optimizer=shard_optimizer,
        objective__attmim__weight=0.0,
        objective__entmlm__weight=0.0,
        optimizer__peak_lr=1e-3,
        optimizer__warmup_share=0.0,
        optimizer__ema=0.9,
    )
    # Sizes that eight devices divide.
    settings.model.update({"image": transformer(16, 2, 2), "text": transformer(32, 2, 4, length=16, vocab_size=64)})
    settings.model.update({"image_decoder": transformer(16, 1, 2), "text_decoder": transformer(16, 1, 2)})
    return settings


def parts(mesh: jax.sharding.Mesh, settings: Any) -> tuple[Any, Any, Any]:
    """(first state, abstract state, update), compiled for the mesh."""
    model, params = tiny.model_and_params(settings)
    optimizer = optim.make_optimizer(settings.optimizer, STEPS)
    schedule = optim.learning_rate(settings.optimizer, STEPS)
    shapes = jax.eval_shape(functools.partial(step.init_state, model, settings, optimizer))
    places = sharding.tree_shardings(shapes, mesh, settings.mesh.shard_optimizer)
    first = tiny.jit(functools.partial(step.init_state, model, settings, optimizer))()
    state = jax.device_put(TrainState(first.step, params, first.opt_state, params, first.guard), places)
    update = step.make_train_step(model, settings, optimizer, schedule, tiny.MASK_ID)
    return state, abstract_like(shapes, places), tiny.jit(update, out_shardings=(places, sharding.replicated(mesh)))


def updated(mesh: jax.sharding.Mesh, settings: Any) -> TrainState:
    state, _, update = parts(mesh, settings)
    with jax.set_mesh(mesh):
        for number in range(STEPS):
            batch = {"paired": tiny.rows(16, 2 * number), "unpaired": tiny.rows(8, 2 * number + 1)}
            state, metrics = update(state, sharding.to_devices(batch, mesh))
    assert float(metrics["finite"]) == 1
    return state


@pytest.fixture(scope="module")
def one_device() -> TrainState:
    return updated(sharding.make_mesh(1, jax.devices()[:1]), config(False))


def held(state: Any) -> int:
    """Bytes on the first device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("fsdp", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_eight_devices_update_as_one_does(one_device: TrainState, fsdp: int, tmp_path: pathlib.Path) -> None:
    mesh = sharding.make_mesh(fsdp)
    state = updated(mesh, config(True))
    assert held(state) < 0.2 * held(one_device)
    for name in ("params", "ema", "opt_state"):
        difference = tiny.largest_difference(sharding.on_host(getattr(state, name)), getattr(one_device, name))
        assert difference < 1e-5, name
    if fsdp > 1:
        return
    # It goes on with four devices, and with one that holds everything.
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(state, iterator(STEPS), run())
    checkpoints.close()
    for count, shard_optimizer in ((4, True), (1, False)):
        other = sharding.make_mesh(1, jax.devices()[:count])
        abstract = abstract_like(state, sharding.tree_shardings(state, other, shard_optimizer))
        checkpoints = Checkpoints(tmp_path, 1)
        restored = checkpoints.restore_latest(abstract, iterator())
        checkpoints.close()
        assert restored is not None
        assert tiny.largest_difference(sharding.on_host(restored.params), sharding.on_host(state.params)) == 0
        assert tiny.largest_difference(sharding.on_host(restored.opt_state), sharding.on_host(state.opt_state)) == 0


def test_specs_add_the_data_axis_to_the_largest_axis_that_it_divides() -> None:
    mesh = sharding.make_mesh(2)  # data 4, fsdp 2

    def spec(path: str, *shape: int) -> tuple[Any, ...]:
        return tuple(sharding.parameter_spec(path, shape, mesh, over_data=True))

    assert spec("a/kernel", 12, 16, 64) == (None, "fsdp", "data")
    assert spec("a/kernel", 12, 64, 10) == ("data", "fsdp", None)
    assert spec("a/bias", 6) == (None,)
    assert spec("a/scale", 8) == ("data",)
    assert spec("a/step") == ()
    assert tuple(sharding.parameter_spec("a/kernel", (12, 16, 64), mesh)) == (None, "fsdp", None)
