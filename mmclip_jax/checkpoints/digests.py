"""What shows that a checkpoint is what was saved: sums of its arrays' bits, and digests of its other items."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp

WITHOUT_DIGESTS = 2  # the schema before digests, which had sums of arrays alone; it is read
_ALL = "all"  # the key of the digest of all sums and digests


@jax.jit
def bit_sums(trees: dict[str, Any]) -> dict[str, jax.Array]:
    """For each tree the sum modulo 2^32 of its arrays' bits, each array with another odd factor.

    One flipped bit changes it; the order of the summation, and so the number of devices, does not.
    """

    def one(x: jax.Array) -> jax.Array:
        unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
        return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32).sum(dtype=jnp.uint32)

    def whole(tree: Any) -> jax.Array:
        sums = jnp.stack([one(x) for x in jax.tree.leaves(tree)])
        return (sums * (2 * jnp.arange(len(sums), dtype=jnp.uint32) + 1)).sum(dtype=jnp.uint32)

    return {name: whole(tree) for name, tree in trees.items()}


def _digest(content: Any) -> str:
    """SHA-256 of what JSON gives back, whatever its spaces and the order of its keys."""
    text = json.dumps(json.loads(json.dumps(content)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def with_digests(sums: dict[str, int], words: dict[str, Any]) -> dict[str, Any]:
    """The item "sums" of a checkpoint: sums of its arrays' bits, digests of its other items, and one of all these."""
    said: dict[str, Any] = sums | {"digests": {name: _digest(content) for name, content in words.items()}}
    return said | {_ALL: _digest(said)}


def check_digests(said: Any, words: dict[str, Any]) -> dict[str, int]:
    """The sums of arrays that the item "sums" names, after a look at the digests.

    words: those of the other items that were read, "run" among them.

    Raises:
      ValueError: something is not what was saved.
    """
    if not isinstance(said, dict) or not isinstance(words["run"], dict):
        raise ValueError("its sums or its run are no JSON objects")
    said = dict(said)
    if words["run"].get("schema") == WITHOUT_DIGESTS and not {"digests", _ALL} & said.keys():
        return said
    if said.pop(_ALL, None) != _digest(said):
        raise ValueError("its sums are not those that were saved")
    digests = said.pop("digests")
    for name, content in words.items():
        if digests.get(name) != _digest(content):
            raise ValueError(f"its item {name!r} is not what was saved")
    return said
