"""GPUs as XLA's compiler wants them described, so that a step compiles for them without one.

The description is a `GpuTargetConfigProto` as text. Figures are the makers' (Hopper tuning guide, data sheets, what
`cudaGetDeviceProperties` says); XLA checks none of them. Memory and bandwidth tell an H100 from an H200.
"""

import dataclasses

from mmclip_jax.errors import UserError

CUDNN = (9, 10, 0)
CUDA = (12, 8, 0)


@dataclasses.dataclass(frozen=True)
class Target:
    """One GPU: memory in bytes, bandwidth in bytes/s, cores (SMs), boost clock in GHz, second-level cache in bytes."""

    name: str
    memory: int
    bandwidth: int
    capability: int = 9
    cores: int = 132
    clock: float = 1.98
    cache: int = 50 << 20
    links: int = 18


TARGETS = {
    "h100": Target("NVIDIA H100 80GB HBM3", 80 * 1000**3, 3350 * 10**9),
    "h200": Target("NVIDIA H200", 141 * 1000**3, 4800 * 10**9),
}

# Limits of every Hopper GPU, as the proto names them.
_LIMITS = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 48 << 10,
    "shared_memory_per_block_optin": 227 << 10,
    "shared_memory_per_core": 228 << 10,
    "threads_per_core_limit": 2048,
    "fpus_per_core": 128,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
    "thread_dim_limit_x": 1024,
    "thread_dim_limit_y": 1024,
    "thread_dim_limit_z": 64,
    "registers_per_core_limit": 1 << 16,
    "registers_per_block_limit": 1 << 16,
    "device_address_bits": 64,
}


def describe(kind: str) -> str:
    """The description of a chip of `TARGETS`.

    Raises:
      UserError: there is none of this chip.
    """
    if kind not in TARGETS:
        raise UserError(f"{kind} is not described in mmclip_jax/plan/targets.py: add --formula")
    gpu = TARGETS[kind]
    cuda, cudnn = (".".join(map(str, version)) for version in (CUDA, CUDNN))
    own = _LIMITS | {
        "core_count": gpu.cores,
        "clock_rate_ghz": gpu.clock,
        "memory_bandwidth": gpu.bandwidth,
        "device_memory_size": gpu.memory,
        "l2_cache_size": gpu.cache,
    }
    words = {
        "name": gpu.name,
        "device_vendor": "NVIDIA Corporation",
        "platform_version": f"Compute Capability {gpu.capability}.0a",
        "driver_version": cuda,
        "runtime_version": cuda,
        "compile_time_toolkit_version": cuda,
        "dnn_version": cudnn,
    }
    return "\n".join(
        [
            "gpu_device_info {",
            *(f"  {name}: {value}" for name, value in own.items()),
            *(f'  {name}: "{value}"' for name, value in words.items()),
            f"  cuda_compute_capability {{ major: {gpu.capability} feature_extension: ACCELERATED_FEATURES }}",
            f"  device_interconnect_info {{ active_links: {gpu.links} }}",
            "}",
            'platform_name: "CUDA"',
            _version("dnn_version_info", CUDNN),
            _version("runtime_version", CUDA),
            f'device_description_str: "{gpu.name}"',
            "",
        ]
    )


def _version(name: str, version: tuple[int, int, int]) -> str:
    return f"{name} {{ major: {version[0]} minor: {version[1]} patch: {version[2]} }}"
