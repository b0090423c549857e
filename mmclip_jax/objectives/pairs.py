"""Which texts of a batch are positives of which images: matrices [R,C] of rows against columns."""

import jax
import jax.numpy as jnp

EXCLUDED = -1e30  # the logit of a pair that does not count


def same_text(row_id: jax.Array, column_id: jax.Array) -> jax.Array:
    """bool [R,C]: ids [R,G] and [C,G] agree in any column."""
    return (row_id[:, None, :] == column_id[None, :, :]).any(axis=-1)


def kind_agreement(row_stated: jax.Array, column_stated: jax.Array) -> jax.Array:
    """float32 [R,C] in [0,1]: kinds stated alike over kinds that either states; 0 where a polarity conflicts."""
    rows, columns = (
        jnp.concatenate([stated > 0, stated < 0], axis=-1).astype(jnp.float32) for stated in (row_stated, column_stated)
    )
    opposite = jnp.concatenate([column_stated < 0, column_stated > 0], axis=-1).astype(jnp.float32)
    alike = jnp.einsum("rk,ck->rc", rows, columns, precision="highest")
    conflicts = jnp.einsum("rk,ck->rc", rows, opposite, precision="highest")
    either = rows.sum(axis=1)[:, None] + columns.sum(axis=1)[None, :] - alike
    return jnp.where(conflicts > 0, 0.0, alike / jnp.maximum(either, 1.0))
