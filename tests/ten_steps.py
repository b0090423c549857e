"""Ten updates on given batches, on any mesh; as a script, one of two processes (see test_equality.py)."""

import functools
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny

from mmclip_jax import sharding
from mmclip_jax.state import TrainState
from mmclip_jax.train import optim, step

STEPS = 10
MARGIN = 1e-4


def config() -> Any:
    """All losses; masks by the response, never at random; a rate that moves the parameters by far more than 1e-5."""
    return tiny.config(
        data__batch_paired=32,
        data__batch_unpaired=16,
        objective__local__weight=0.5,
        objective__attmim__hint=0.3,
        optimizer__peak_lr=1e-3,
        optimizer__ema=0.9,
        train__steps=STEPS,
    )


@functools.cache
def _model() -> tuple[Any, Any]:
    return tiny.model_and_params(config())


def masks(params: Any, number: jax.Array, batch: Any) -> Any:
    """What each row hides at a step, and the responses that decide."""
    return tiny.responses_and_masks(_model()[0], config(), params, number, batch)


def _remember_gradients() -> optax.GradientTransformation:
    """Leaves the gradients as they are, and keeps them as its state."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda gradients, _, __: (gradients, gradients)
    )


def _parts(mesh: jax.sharding.Mesh) -> tuple[Any, Any, Any]:
    """(first state, update, masks), each sharded and compiled for the mesh."""
    settings = config()
    model, params = _model()
    optimizer = optax.chain(_remember_gradients(), optim.make_optimizer(settings.optimizer, STEPS))
    schedule = optim.learning_rate(settings.optimizer, STEPS)
    make_state = functools.partial(step.init_state, model, settings, optimizer)
    places = sharding.tree_shardings(jax.eval_shape(make_state), mesh)
    update = step.make_train_step(model, settings, optimizer, schedule, tiny.MASK_ID)
    whole = sharding.replicated(mesh)

    def placed(x: jax.Array, place: jax.sharding.Sharding) -> jax.Array:
        return jax.make_array_from_callback(x.shape, place, lambda part: np.asarray(x)[part])

    with jax.set_mesh(mesh):
        state = tiny.jit(make_state, out_shardings=places)()
        # Other parameters than the first ones: no bias is zero, every path carries a gradient.
        own, ema = (jax.tree.map(placed, params, place) for place in (places.params, places.ema))
    state = TrainState(state.step, own, state.opt_state, ema, state.guard)
    return state, tiny.jit(update, out_shardings=(places, whole)), tiny.jit(masks, out_shardings=whole)


def run(mesh: jax.sharding.Mesh, batches: list[Any] | None = None) -> tuple[dict[str, Any], list[Any]]:
    """Ten updates.

    Args:
      mesh: of all devices of all processes.
      batches: of whole rows [B, ...]; each process takes its own. None chooses them, step by step, so that no selection
        of patches hangs on rounding; only for one device.

    Returns:
      ({"masks": by step, "losses": [10], "gradients": by step; "params", "ema", "opt_state": at the end}, batches)
    """
    state, update, masks_of = _parts(mesh)
    process, processes = jax.process_index(), jax.process_count()
    taken: list[Any] = []
    seen: dict[str, list[Any]] = {"masks": [], "losses": [], "gradients": []}
    with jax.set_mesh(mesh):
        for number in range(STEPS):
            if batches is None:
                taken.append(tiny.batch_with_margin(config(), functools.partial(masks_of, state.params, state.step),
                                                    MARGIN, seed=number))  # fmt: skip
            else:
                taken.append(batches[number])
            mine = jax.tree.map(lambda x: np.array_split(x, processes)[process], taken[-1])
            rows = sharding.to_devices(mine, mesh)
            seen["masks"].append(jax.device_get(masks_of(state.params, state.step, rows)))
            state, metrics = update(state, rows)
            seen["losses"].append(float(metrics["loss"]))
            seen["gradients"].append(sharding.on_host(state.opt_state[0]))
    return seen | {name: sharding.on_host(getattr(state, name)) for name in ("params", "ema", "opt_state")}, taken


if __name__ == "__main__":  # batches.npy, results.npy, coordinator, number of this process
    source, target, coordinator, own_number = sys.argv[1:]
    jax.config.update("jax_default_matmul_precision", "highest")
    sharding.join_processes(coordinator, 2, int(own_number))
    results, _ = run(sharding.make_mesh(2), np.load(source, allow_pickle=True).tolist())
    if jax.process_index() == 0:
        leaves = np.empty(len(jax.tree.leaves(results)), object)
        leaves[:] = jax.tree.leaves(results)
        np.save(pathlib.Path(target), leaves, allow_pickle=True)
    assert jnp.isfinite(results["losses"][-1])
