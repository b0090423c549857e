"""The compiler's flags by platform, each with its reason: one table, passed with the step and not by the environment.

`train.compiler_options` overrides single ones, `train.platform_flags=False` leaves all out. They let chips compute
beside what they send each other, so a single device has none.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

from mmclip_jax import sharding
from mmclip_jax.check import compiler_options

Options = dict[str, str | bool]


class Flag(NamedTuple):
    """One option of XLA; deviceless: only where the program is compiled without the chip."""

    platform: str
    name: str
    value: str | bool
    reason: str
    deviceless: bool = False


_TOGETHER = "with the others of this platform: none alone moves a reduction beside the computing"
FLAGS = (
    Flag("tpu", "xla_enable_async_all_reduce", True, _TOGETHER),
    Flag("tpu", "xla_tpu_enable_async_collective_fusion", True, _TOGETHER),
    Flag("tpu", "xla_tpu_enable_async_collective_fusion_fuse_all_reduce", True, _TOGETHER),
    Flag("tpu", "xla_tpu_enable_async_collective_fusion_multiple_steps", True, _TOGETHER),
    Flag("tpu", "xla_tpu_overlap_compute_collective_tc", True, _TOGETHER),
    Flag(
        "tpu",
        "xla_jf_crs_combiner_threshold_in_bytes",
        "262144",
        "reductions combined into large ones wait for the last gradient, and then nothing is left to compute beside",
    ),
    Flag("gpu", "xla_gpu_enable_latency_hiding_scheduler", True, "starts reductions early and waits for them late"),
    Flag(
        "gpu",
        "xla_gpu_enable_pipelined_all_reduce",
        True,
        "the layers are a loop: a layer's reduction goes on beside the next layer's products (about 0.25 GB a layer)",
    ),
    Flag(
        "gpu",
        "xla_gpu_enable_triton_gemm",
        False,
        "Triton's tile sizes are measured on a chip; without one, compiling fails",
        deviceless=True,
    ),
)


def platform_of(mesh: jax.sharding.Mesh) -> str:
    """The platform as the table names it."""
    name = mesh.devices.flat[0].platform
    return "gpu" if name in ("cuda", "rocm") else name


def deviceless(platform: str) -> Options:
    """What a platform's compiler needs where its chips are not there."""
    return {flag.name: flag.value for flag in FLAGS if flag.platform == platform and flag.deviceless}


def step_options(settings: ConfigDict, mesh: jax.sharding.Mesh) -> Options:
    """The options of the step: those of the table that the compiler takes, then `train.compiler_options`.

    Says once which ones of the table this version or platform refuses.

    Args:
      settings: the `train` part.
      mesh: of the devices that the step runs on, or that a topology describes.

    Raises:
      UserError: `train.compiler_options` is not name=value.
    """
    given = compiler_options(settings.compiler_options)
    if mesh.size == 1 or not settings.get("platform_flags", True):
        return given
    platform = platform_of(mesh)
    ours = {flag.name: flag.value for flag in FLAGS if flag.platform == platform and not flag.deviceless}
    return _accepted({name: value for name, value in ours.items() if name not in given}, mesh) | given


def _accepted(options: Mapping[str, str | bool], mesh: jax.sharding.Mesh) -> Options:
    """Those that the compiler of the mesh takes, as a program of one addition shows."""
    if not options:
        return {}
    one = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding.replicated(mesh))
    lowered = jax.jit(lambda x: x + 1).lower(one)

    def takes(tried: Mapping[str, str | bool]) -> bool:
        try:
            lowered.compile(dict(tried))
        except (jax.errors.JaxRuntimeError, ValueError):
            return False
        return True

    if takes(options):
        return dict(options)
    taken = {name: value for name, value in options.items() if takes({name: value})}
    refused = ", ".join(name for name in options if name not in taken)
    logging.log_first_n(logging.WARNING, "this compiler does not know %s: compiled without", 1, refused)
    return taken
