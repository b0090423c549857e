"""The contrastive loss in chunks of columns that go round a ring of devices."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mmclip_jax import sharding
from mmclip_jax.objectives.pairs import EXCLUDED, same_text, strengths

Arrays = dict[str, jax.Array]


class _Logits(NamedTuple):
    """What makes logits of similarities: scale, bias, and the loss's name."""

    scale: jax.Array
    bias: jax.Array
    loss: str


def filled_up(own: int, chunk: int) -> int:
    """The `own` columns of a device, filled up to whole chunks of at most `chunk`."""
    size = min(chunk, own)
    return -(-own // size) * size


def sums_by_ring(rows: Arrays, scale: jax.Array, bias: jax.Array, loss: str, chunk: int) -> Arrays:
    """What `contrastive_loss` needs of every row [B], with no more than [B/devices, chunk] logits in memory.

    Each device keeps its rows. Its columns start as its own rows too and go on to the next device until they have been
    everywhere; softmax sums are kept relative to a running maximum. The backward pass computes the logits again, from
    the columns, which are kept: [B,E] a device, as much as the gather of the unchunked loss holds.

    rows: "image" and "text" [B,E], "text_id" [B,G], and if they count, "stated" and "known" [B,K], "source" [B].
    Returns {"image_loss", "text_loss", "image_correct", "text_correct", "positives"}: each float32 [B].
    """
    rows = rows | {name: rows[name].astype(jnp.float32) for name in ("image", "text")}
    devices = sharding.row_shards()
    if devices == 1:
        return _own_sums(rows, scale, bias, loss, chunk, devices)
    spread, same = PartitionSpec(sharding.ROW_AXES), PartitionSpec()
    around = jax.shard_map(
        functools.partial(_own_sums, loss=loss, chunk=chunk, devices=devices),
        mesh=jax.sharding.get_abstract_mesh(),
        in_specs=(spread, same, same),
        out_specs=spread,
        check_vma=False,
    )
    return around(jax.tree.map(sharding.shard_rows, rows), scale, bias)


def _own_sums(own: Arrays, scale: jax.Array, bias: jax.Array, loss: str, chunk: int, devices: int) -> Arrays:
    """The sums of one device's own rows over the columns of all."""
    count = len(own["image"])
    padding = filled_up(count, chunk) - count
    names = sharding.ROW_AXES

    def pad(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))

    def in_chunks(x: jax.Array) -> jax.Array:
        return x.reshape(-1, min(chunk, count), *x.shape[1:])

    here = jax.lax.axis_index(names) if devices > 1 else 0
    columns = own | {"number": here * count + jnp.arange(count), "valid": jnp.ones(count, bool)}
    columns = jax.tree.map(pad, columns)
    logits = _Logits(scale, bias, loss)
    body = jax.checkpoint(lambda sums, chunk: (_add_chunk(own, logits, sums, chunk), None))

    def visit(state: tuple[Arrays, Arrays], _: None) -> tuple[tuple[Arrays, Arrays], None]:
        sums, columns = state
        sums, _ = jax.lax.scan(body, sums, jax.tree.map(in_chunks, columns))
        if devices > 1:
            onward = [(device, (device + 1) % devices) for device in range(devices)]
            columns = jax.tree.map(lambda x: jax.lax.ppermute(x, names, onward), columns)
        return (sums, columns), None

    start = _nothing(jnp.zeros_like(own["image"][:, 0]), loss)
    (sums, _), _ = jax.lax.scan(visit, (start, columns), None, length=devices)
    out = {name: sums[name] for name in ("positives", "image_correct", "text_correct")}
    for mine in ("image", "text"):
        if loss == "softmax":
            log_sum = sums[f"{mine}_best"] + jnp.log(sums[f"{mine}_sum"])
            out[f"{mine}_loss"] = log_sum - sums[f"{mine}_wanted"] / jnp.maximum(sums[f"{mine}_strength"], 1e-12)
        else:
            out[f"{mine}_loss"] = sums[f"{mine}_sum"]
    return out


def _nothing(zero: jax.Array, loss: str) -> Arrays:
    """The sums before the first chunk; zero: float32 [B]."""
    start = {"positives": zero}
    for mine in ("image", "text"):
        start |= {f"{mine}_{name}": zero for name in ("sum", "correct", "strength")}
        start |= {f"{mine}_best": zero + EXCLUDED, f"{mine}_number": zero.astype(jnp.int32)}
        start |= {f"{mine}_wanted": zero} if loss == "softmax" else {}
    return start


def _add_chunk(own: Arrays, logits: _Logits, sums: Arrays, columns: Arrays) -> Arrays:
    """Takes one chunk of columns into the sums of a device's own rows."""
    included = jnp.broadcast_to(columns["valid"][None, :], (len(own["image"]), len(columns["valid"])))
    if "source" in own:
        included = included & (own["source"][:, None] == columns["source"][None, :])
    positive = same_text(own["text_id"], columns["text_id"]) & included
    agreement = strengths(own, columns, positive)
    out = {"positives": sums["positives"] + positive.sum(axis=1).astype(jnp.float32)}
    for mine, others in (("image", "text"), ("text", "image")):
        strength = jnp.where(included, agreement[mine], 0.0)
        out[f"{mine}_strength"] = sums[f"{mine}_strength"] + strength.sum(axis=1)
        similarity = jnp.einsum("re,ce->rc", own[mine], columns[others], precision="highest")
        values = logits.scale * similarity + logits.bias
        out |= _best(mine, values, sums, columns["number"], included, positive)
        if logits.loss == "softmax":
            highest = out[f"{mine}_best"]
            shifted = jnp.where(included, values - highest[:, None], EXCLUDED)
            before = sums[f"{mine}_sum"] * jnp.exp(sums[f"{mine}_best"] - highest)
            out[f"{mine}_sum"] = before + jnp.exp(shifted).sum(axis=1)
            out[f"{mine}_wanted"] = sums[f"{mine}_wanted"] + (strength * values).sum(axis=1)
        else:
            pair = strength * jax.nn.log_sigmoid(values) + (1.0 - strength) * jax.nn.log_sigmoid(-values)
            out[f"{mine}_sum"] = sums[f"{mine}_sum"] - jnp.where(included, pair, 0.0).sum(axis=1)
    return out


def _best(
    mine: str, logits: jax.Array, sums: Arrays, numbers: jax.Array, included: jax.Array, positive: jax.Array
) -> Arrays:
    """The highest logit of each row up to now, its column's number and whether it is a positive.

    As argmax over all columns: of equal ones the first.
    """
    seen = jax.lax.stop_gradient(jnp.where(included, logits, EXCLUDED))
    best = jnp.argmax(seen, axis=1)[:, None]
    value = jnp.take_along_axis(seen, best, axis=1)[:, 0]
    number = jnp.take_along_axis(jnp.broadcast_to(numbers[None, :], seen.shape), best, axis=1)[:, 0]
    hit = jnp.take_along_axis(positive, best, axis=1)[:, 0].astype(jnp.float32)
    highest, first = sums[f"{mine}_best"], sums[f"{mine}_number"]
    better = (value > highest) | ((value == highest) & (number < first))
    return {
        f"{mine}_best": jnp.maximum(value, highest),
        f"{mine}_number": jnp.where(better, number, first),
        f"{mine}_correct": jnp.where(better, hit, sums[f"{mine}_correct"]),
    }
