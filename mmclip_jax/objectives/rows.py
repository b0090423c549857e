"""Keys of single rows: all randomness of a step is a function of the seed, the step, the part and the row in it.

Keys are drawn before the parts are joined, so that they do not depend on the device count.
"""

import jax
import jax.numpy as jnp

from mmclip_jax import sharding

PART_NUMBER = {"paired": 0, "unpaired": 1}
# Streams of a row's key: what is drawn in one says nothing of the others.
PATCHES, TOKENS, LOCAL = 0, 1, 2


def row_key_data(seed: int, step: jax.Array, part: str, rows: int) -> jax.Array:
    """Key data uint32 [rows,2], one key a row: a function of seed, step, part and row number only."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), PART_NUMBER[part])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
    return sharding.shard_rows(jax.random.key_data(keys))


def stream(key_data: jax.Array, number: int) -> jax.Array:
    """The keys [B] of one stream from the rows' key data [B,2]."""
    return jax.vmap(jax.random.fold_in, (0, None))(jax.random.wrap_key_data(key_data), number)
