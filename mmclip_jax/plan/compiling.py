"""The run's own step, compiled for TPUs that need not be there."""

import os
from importlib import metadata
from typing import Any

import jax
from jax.experimental import topologies as jax_topologies
from ml_collections import ConfigDict

from mmclip_jax import sharding
from mmclip_jax.errors import DoesNotFitError, UserError
from mmclip_jax.plan.memory import REMEDY
from mmclip_jax.plan.topologies import Topology
from mmclip_jax.state import TrainState
from mmclip_jax.train import run as training


def tpu_devices(topology: Topology) -> list[Any]:
    """The devices of a slice as libtpu describes them; no TPU is needed.

    Raises:
      UserError: libtpu is missing, or does not know the topology.
    """
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),  # no questions to a metadata server
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),  # no chip is taken, so others may plan too
        ("TPU_ACCELERATOR_TYPE", "v5litepod-8"),  # of this host; without it libtpu complains for lines
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_MIN_LOG_LEVEL", "3"),
    ):
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    try:
        return list(jax_topologies.get_topology_desc(platform="tpu", topology_name=topology.text).devices)
    except RuntimeError as error:
        if "not installed" in str(error):
            raise UserError(
                "libtpu, the compiler for TPUs, is not installed: pip install -r requirements-tpu.txt"
            ) from error
        raise UserError(
            f"libtpu does not take the topology {topology.text} ({error}): sizes go by twos, from {topology.kind}:2x2"
            f"{'x1' if topology.chip.axes == 3 else ''} up"
        ) from error


def compile_step(config: ConfigDict, devices: list[Any], mask_id: int) -> tuple[jax.stages.Compiled, TrainState]:
    """Compiles the run's own train step for these devices, which need not exist; minutes for ViT-B on a TPU slice.

    Returns:
      (the compiled step, the abstract state).

    Raises:
      DoesNotFitError: the compiler finds no room for it.
    """
    mesh = sharding.make_mesh(config.mesh.fsdp, devices)
    built = training.build(config, mesh, mask_id)
    with jax.set_mesh(mesh):
        lowered = built.train_step.lower(built.abstract_state, training.abstract_batch(config, mesh))
    try:
        return lowered.compile(), built.abstract_state
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = str(error).splitlines()[0].rstrip(".")
        raise DoesNotFitError(f"the compiler finds no room for the step ({said}): {REMEDY}") from error


def compiler() -> str:
    """What compiles, with its versions."""
    known = []
    for name in ("jax", "libtpu"):
        try:
            known.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(known)
