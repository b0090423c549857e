"""Where arrays live: the mesh, the rows of a batch and the parameters.

Axis "data" replicates parameters, axis "fsdp" shards them; the rows of a batch are sharded over both. Every function
that constrains an array is the identity outside a mesh (`jax.set_mesh`), so models and objectives run unchanged on one
device.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

ROW_AXES = ("data", "fsdp")

# First match wins; the spec names the trailing axes of a parameter (scanned layers carry a leading layer axis).
PARAMETER_RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"embedding$", (None, "fsdp")),
    (r"kernel$", ("fsdp", None)),
    (r".*", ()),
)


def join_processes(coordinator: str | None = None, count: int | None = None, number: int | None = None) -> None:
    """Joins the run's other processes; before anything asks for devices. None: from what the cluster says.

    CPUs of several processes exchange data over Gloo, which pairs messages by their order alone, so all processes must
    exchange in one order. That rules out two things: computations that overlap, and compiled code from a cache, which
    runs its exchanges as they become ready (jaxlib 0.10; seen as "op.preamble.length <= op.nbytes").

    Raises:
      ValueError: an address or a number that cannot be, or nothing that names the other processes.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.distributed.initialize(coordinator, count, number)
    if jax.default_backend() == "cpu":
        jax.config.update("jax_enable_compilation_cache", False)


def make_mesh(fsdp: int = 1, devices: list[Any] | None = None) -> Mesh:
    """A mesh ("data", "fsdp") over all devices, `fsdp` of them to a parameter shard group.

    Raises:
      ValueError: the number of devices is no multiple of `fsdp`.
    """
    devices = jax.devices() if devices is None else devices
    if fsdp < 1 or len(devices) % fsdp:
        raise ValueError(f"mesh.fsdp={fsdp} does not divide the {len(devices)} devices")
    return jax.make_mesh(
        (len(devices) // fsdp, fsdp), ROW_AXES, axis_types=(AxisType.Auto, AxisType.Auto), devices=devices
    )


def _current_mesh() -> Any:
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


def row_shards() -> int:
    """Number of shards that the rows of a batch are cut into in the current mesh; 1 outside a mesh."""
    mesh = _current_mesh()
    return 1 if mesh is None else mesh.size


def shard_rows(x: jax.Array) -> jax.Array:
    """Keeps axis 0 of `x` sharded over the devices and everything else whole."""
    if _current_mesh() is None:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(ROW_AXES))


def replicate(x: jax.Array) -> jax.Array:
    """Gathers `x` whole onto every device."""
    if _current_mesh() is None:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec())


def join_rows(*parts: jax.Array) -> jax.Array:
    """Concatenates parts [B_i, ...] along the rows without moving a row to another device.

    Each device holds its rows of the first part, then its rows of the second, and so on: the order of the joined rows
    depends on the device count, their set does not.

    Raises:
      ValueError: a part's rows do not divide over the devices.
    """
    shards = row_shards()
    for part in parts:
        if part.shape[0] % shards:
            raise ValueError(f"{part.shape[0]} rows do not divide over {shards} devices")
    by_shard = [shard_rows(part.reshape(shards, -1, *part.shape[1:])) for part in parts]
    joined = shard_rows(jnp.concatenate(by_shard, axis=1))
    return shard_rows(joined.reshape(-1, *joined.shape[2:]))


def split_rows(joined: jax.Array, *sizes: int) -> list[jax.Array]:
    """Undoes `join_rows`: parts [sizes[i], ...] in their own order."""
    shards = row_shards()
    by_shard = shard_rows(joined.reshape(shards, -1, *joined.shape[1:]))
    parts, start = [], 0
    for size in sizes:
        part = by_shard[:, start : start + size // shards]
        parts.append(shard_rows(part.reshape(size, *joined.shape[1:])))
        start += size // shards
    return parts


def chunk_rows(x: jax.Array, chunks: int) -> jax.Array:
    """[B, ...] -> [chunks, B/chunks, ...], each chunk spread over all devices, no row moved.

    Raises:
      ValueError: B is no multiple of chunks times devices.
    """
    shards = row_shards()
    if x.shape[0] % (shards * chunks):
        raise ValueError(f"{x.shape[0]} rows do not divide into {chunks} chunks on {shards} devices")
    by_shard = shard_rows(x.reshape(shards, chunks, -1, *x.shape[1:]))
    return jnp.moveaxis(by_shard, 1, 0).reshape(chunks, -1, *x.shape[1:])


def unchunk_rows(x: jax.Array) -> jax.Array:
    """Undoes `chunk_rows`."""
    shards, chunks = row_shards(), x.shape[0]
    by_chunk = x.reshape(chunks, shards, -1, *x.shape[2:])
    return shard_rows(jnp.moveaxis(by_chunk, 0, 1).reshape(-1, *x.shape[2:]))


def parameter_spec(
    path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, over_data: bool = False
) -> PartitionSpec:
    """The spec of a parameter by its path "a/b/kernel"; an axis that does not divide stays whole.

    over_data: the largest of the axes that are whole and that "data" divides is cut along it, too.
    """
    trailing = next(spec for pattern, spec in PARAMETER_RULES if re.search(pattern, path))
    trailing = trailing[len(trailing) - min(len(trailing), len(shape)) :]
    whole: list[str | None] = [None] * (len(shape) - len(trailing))
    axes = whole + [
        axis if axis and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(trailing, shape[len(whole) :], strict=True)
    ]
    free = [n for n, axis in enumerate(axes) if axis is None and shape[n] and shape[n] % mesh.shape["data"] == 0]
    if over_data and free and mesh.shape["data"] > 1:
        axes[max(free, key=lambda n: shape[n])] = "data"
    return PartitionSpec(*axes)


def _tree_specs(tree: Any, mesh: Any, over_data: bool) -> Any:
    def spec(path: Any, leaf: Any) -> PartitionSpec:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return parameter_spec(name, leaf.shape, mesh, over_data)

    return jax.tree_util.tree_map_with_path(spec, tree)


def tree_shardings(tree: Any, mesh: Mesh | AbstractMesh, over_data: bool = False) -> Any:
    """A NamedSharding for every array of a state tree (optimizer moments carry their parameter's path).

    over_data: cut along "data" too, see `parameter_spec` (`mesh.shard_optimizer`, ZeRO's first stage).
    """
    specs = _tree_specs(tree, mesh, over_data)
    is_spec = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=is_spec)


def gather_over_data(params: Any) -> Any:
    """Parameters that are cut along "data", gathered along it: what forward and backward pass compute with."""
    return _constrained(params, over_data=False)


def scatter_over_data(tree: Any) -> Any:
    """Gradients or parameters, cut along "data": each device keeps what it updates."""
    return _constrained(tree, over_data=True)


def _constrained(tree: Any, over_data: bool) -> Any:
    mesh = _current_mesh()
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, _tree_specs(tree, mesh, over_data))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of every array of a batch: rows over all devices."""
    return NamedSharding(mesh, PartitionSpec(ROW_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def to_devices(batch: Any, mesh: Mesh) -> Any:
    """This process's rows of a batch (NumPy arrays [b, ...]) as global arrays whose rows lie over all devices."""
    rows = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(rows, x), batch)


def on_host(tree: Any) -> Any:
    """Whole arrays of a tree of sharded ones as NumPy arrays, in every process; all processes must call it."""
    whole = _gather(jax.tree.leaves(tree)[0].sharding.mesh)(tree)
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), whole)


@functools.lru_cache(maxsize=8)
def _gather(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def map_rows(
    compute: Callable[[Any], Any],
    make: Callable[[np.ndarray], dict[str, np.ndarray]],
    count: int,
    mesh: Mesh,
    batch: int,
    done: Callable[[int], object] = lambda rows: None,
) -> Any:
    """Computes something for each of `count` rows, spread over all devices of all processes.

    The last batch is filled up with copies of a row, so that one shape is compiled. All processes must call it alike.

    Args:
      compute: jitted, {name: [B, ...]} on the devices -> a tree of arrays [B, ...].
      make: row numbers int [b] -> {name: [b, ...]}; each process is asked for its own rows only.
      count: at least 1.
      mesh: of all devices.
      batch: rows at a time, rounded up to a multiple of the devices.
      done: called with the number of rows that were computed.

    Returns:
      The tree with NumPy arrays [count, ...], in order of the rows, whole in every process.
    """
    size = -(-batch // mesh.size) * mesh.size
    share = size // jax.process_count()
    pieces: list[Any] = []
    for start in range(0, count, size):
        mine = start + jax.process_index() * share + np.arange(share)
        real = mine[mine < count]
        rows = make(real if len(real) else np.array([count - 1]))
        rows = {name: np.concatenate([x, x[-1:].repeat(share - len(x), axis=0)]) for name, x in rows.items()}
        placed = to_devices(rows | {"row": mine}, mesh)
        # Where a process's rows lie among all is the mesh's choice: the numbers travel with them.
        number = placed.pop("row")
        with jax.set_mesh(mesh):
            out = on_host({"out": compute(placed), "row": number})
        kept = np.argsort(out["row"], kind="stable")[: min(size, count - start)]
        pieces.append(jax.tree.map(lambda x, kept=kept: x[kept], out["out"]))
        done(len(kept))
    return jax.tree.map(lambda *x: np.concatenate(x), *pieces)
