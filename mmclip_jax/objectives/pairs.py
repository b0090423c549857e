"""Which texts of a batch are positives of which images: matrices [R,C] of rows against columns."""

from collections.abc import Mapping

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


def support(known: jax.Array, stated: jax.Array) -> jax.Array:
    """float32 [I,T] in [0,1]: of the kinds that a text states, the share that is known of an image.

    It is 0 where the text says the opposite of what is known, or states nothing.

    Args:
      known: int [I,K] of +1 (known present), -1 (known absent), 0; stated: int [T,K] of +1, -1, 0.
    """
    known, stated = known.astype(jnp.float32), stated.astype(jnp.float32)
    difference = jnp.einsum("ik,tk->it", known, stated, precision="highest")  # alike less opposite
    either = jnp.einsum("ik,tk->it", jnp.abs(known), jnp.abs(stated), precision="highest")  # alike and opposite
    count = jnp.abs(stated).sum(axis=1)[None, :]
    return jnp.where(difference < either, 0.0, difference / jnp.maximum(count, 1.0))


def strengths(
    rows: Mapping[str, jax.Array], columns: Mapping[str, jax.Array], positive: jax.Array
) -> dict[str, jax.Array]:
    """{"image", "text"}: how much each column's text (image) is a positive of each row's image (text), [R,C] in [0,1].

    rows, columns: with "stated" by `kind_agreement`, with "known" too by `support`. positive: see `same_text`; its
    pairs have 1.
    """
    same = positive.astype(jnp.float32)
    if "known" in rows:
        return {
            "image": jnp.maximum(same, support(rows["known"], columns["stated"])),
            "text": jnp.maximum(same, support(columns["known"], rows["stated"]).T),
        }
    if "stated" in rows:
        same = jnp.maximum(same, kind_agreement(rows["stated"], columns["stated"]))
    return {"image": same, "text": same}
