"""The run's own step, compiled for TPUs and GPUs that need not be there."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import jax
from jax.experimental import topologies as jax_topologies
from ml_collections import ConfigDict

from mmclip_jax import sharding
from mmclip_jax.errors import DoesNotFitError, UserError
from mmclip_jax.plan import targets
from mmclip_jax.plan.memory import REMEDY
from mmclip_jax.plan.topologies import Topology
from mmclip_jax.state import TrainState
from mmclip_jax.train import flags
from mmclip_jax.train import run as training

_GPU_PLUGIN = "jax_cuda12_plugin"


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
                "libtpu, the compiler for TPUs, is not installed: pip install -r requirements-tpu.txt, or add --formula"
            ) from error
        raise UserError(
            f"libtpu does not take the topology {topology.text} ({error}): sizes go by twos, from {topology.kind}:2x2"
            f"{'x1' if topology.chip.axes == 3 else ''} up"
        ) from error


def can_compile(topology: Topology) -> bool:
    """Whether the step is compiled for it: for all TPUs, for described GPUs where their compiler is installed."""
    return topology.is_tpu or (topology.kind in targets.TARGETS and importlib.util.find_spec(_GPU_PLUGIN) is not None)


def devices_of(topology: Topology) -> list[Any]:
    """The devices of a slice or a cluster as their compiler describes them; none need be there.

    Raises:
      UserError: the compiler is missing, or does not know the topology.
    """
    if topology.is_tpu:
        return tpu_devices(topology)
    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # that there are no drivers here is known
    a_node, nodes = topology.shape
    described = jax_topologies.get_topology_desc(
        platform="cuda", target_config=targets.describe(topology.kind), topology=f"1x{nodes}x{a_node}"
    )
    return list(described.devices)


@contextlib.contextmanager
def _described_cudnn() -> Iterator[None]:
    """cuDNN's version is that of the description: JAX would ask the library, which a machine without GPUs has not."""
    from jax._src.cudnn import fused_attention_stablehlo as attention

    major, minor, patch = targets.CUDNN
    before = attention.check_cudnn_version
    attention.check_cudnn_version = lambda: major * 10_000 + minor * 100 + patch
    try:
        yield
    finally:
        attention.check_cudnn_version = before


def compile_step(config: ConfigDict, devices: list[Any], mask_id: int) -> tuple[jax.stages.Compiled, TrainState]:
    """Compiles the run's own train step for these devices, which need not exist; minutes for ViT-B on a TPU slice.

    Returns:
      (the compiled step, the abstract state).

    Raises:
      DoesNotFitError: the compiler finds no room for it.
    """
    mesh = sharding.make_mesh(config.mesh.fsdp, devices)
    built = training.build(config, mesh, mask_id)
    with jax.set_mesh(mesh), _described_cudnn():
        lowered = built.train_step.lower(built.abstract_state, training.abstract_batch(config, mesh))
    try:
        return lowered.compile(flags.deviceless(flags.platform_of(mesh))), built.abstract_state
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = str(error).splitlines()[0].rstrip(".")
        raise DoesNotFitError(f"the compiler finds no room for the step ({said}): {REMEDY}") from error


def compiler(topology: Topology) -> str:
    """What compiles for a topology, with its versions."""
    known = []
    for name in ("jax", "libtpu" if topology.is_tpu else "jax-cuda12-pjrt"):
        try:
            known.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(known)
