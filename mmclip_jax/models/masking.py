"""Which patches and which tokens are masked: pure, jit-compiled selections with static shapes.

Everything here is float32: bfloat16 responses would tie. Selections are made with stable sorts along a row, which XLA
partitions over rows without communication (`lax.top_k` gathers its input on CPU).
"""

import jax
import jax.numpy as jnp

STRATEGIES = ("attention", "random", "inverse")
TOKEN_STRATEGIES = ("entity", "random")

in_masking = jax.named_scope("masking")  # benchmarks/kernels.py counts selections and gathers by this name


def row_keys(key: jax.Array, rows: int) -> jax.Array:
    """One key a row [rows]: `key` itself if it is one a row already, else fold_in(key, row number).

    Raises:
      ValueError: an array of keys of another length.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
    if key.shape != (rows,):
        raise ValueError(f"{rows} rows need one key or {rows} keys, not {key.shape}")
    return key


def _uniform(keys: jax.Array, count: int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.uniform(key, (count,)))(keys)


def _rank(values: jax.Array) -> jax.Array:
    """Position of each entry in the stable ascending order of its row [B,N]; NaN comes last."""
    return jnp.argsort(jnp.argsort(values, axis=1, stable=True), axis=1, stable=True)


def _positions(chosen: jax.Array, count: int) -> jax.Array:
    """The first `count` positions of a row, chosen ones first, each kind in ascending order: int32 [B,count]."""
    return jnp.argsort(~chosen, axis=1, stable=True)[:, :count].astype(jnp.int32)


def masked_count(patches: int, ratio: float) -> int:
    """K = round(ratio * N), by Python's rounding.

    Raises:
      ValueError: ratio outside [0, 1].
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"mask ratio {ratio} is not in [0, 1]")
    return round(ratio * patches)


@in_masking
def select_masked_patches(
    response: jax.Array, key: jax.Array, *, ratio: float, hint: float, strategy: str
) -> tuple[jax.Array, jax.Array]:
    """Chooses K = round(ratio*N) patches to mask in every row.

    H holds the K patches of highest response ("attention") or lowest ("inverse"); round(hint*K) of them, at most N-K,
    drawn at random, are revealed and as many of the others are masked instead. "random" masks any K. Ties go to the
    lower index; NaN ranks lowest. Nothing is differentiated through the selection.

    Args:
      response: [B,N].
      key: one key, or one a row [B]; each row's draw depends on its key alone.
      ratio: share of patches to mask, [0, 1].
      hint: share of H to reveal, [0, 1]; 0 masks H exactly.
      strategy: "attention", "random" or "inverse".

    Returns:
      (masked int32 [B,K], visible int32 [B,N-K]), each sorted. docs/method.md, "AttMIM".

    Raises:
      ValueError: an unknown strategy, a ratio or hint outside [0, 1].
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"masking strategy {strategy!r} is not one of {', '.join(STRATEGIES)}")
    if not 0 <= hint <= 1:
        raise ValueError(f"hint {hint} is not in [0, 1]")
    rows, patches = response.shape
    count = masked_count(patches, ratio)
    draw = _uniform(row_keys(key, rows), patches)
    if strategy == "random":
        masked = _rank(draw) < count
    else:
        response = jax.lax.stop_gradient(response.astype(jnp.float32))
        lowest = jnp.isnan(response)
        value = jnp.where(lowest, 0.0, response)
        # Two keys, because NaN ranks below -inf: first whether it is NaN, then the value.
        flag, value = (lowest, -value) if strategy == "attention" else (~lowest, value)
        index = jnp.broadcast_to(jnp.arange(patches)[None], response.shape)
        order = jax.lax.sort((flag.astype(jnp.int32), value, index), dimension=1, num_keys=2, is_stable=True)[2]
        top = jnp.argsort(order, axis=1, stable=True) < count
        swaps = min(round(hint * count), patches - count)
        revealed = _rank(jnp.where(top, draw, jnp.inf)) < swaps
        added = _rank(jnp.where(top, jnp.inf, draw)) < swaps
        masked = (top & ~revealed) | added
    return _positions(masked, count), _positions(~masked, patches - count)


@in_masking
def select_masked_tokens(
    entity: jax.Array,
    valid: jax.Array,
    key: jax.Array,
    *,
    probability: float,
    min_share: float,
    slots: int,
    strategy: str,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Chooses the tokens that EntMLM masks.

    "entity": every entity is masked whole with `probability`, at least one where there is one. Entities that would not
    fit into the slots are dropped whole, at random. Tokens outside entities, drawn at random, top the masked tokens up
    to ceil(min_share * valid tokens). "random" masks as many tokens, drawn from all valid ones.

    Args:
      entity: int [B,L], 0 outside entities, n for the tokens of the n-th entity of the row, below 0 for tokens that are
        never masked.
      valid: bool [B,L].
      key: one key, or one a row [B].
      slots: K_t, the static number of masked tokens a row can have, at most L.

    Returns:
      (slots int32 [B,K_t], the masked positions first; weights float32 [B,K_t], 1 where a slot is used;
      dropped int32 [B], entities that did not fit). docs/method.md, "EntMLM".

    Raises:
      ValueError: an unknown strategy, more slots than tokens.
    """
    if strategy not in TOKEN_STRATEGIES:
        raise ValueError(f"token masking strategy {strategy!r} is not one of {', '.join(TOKEN_STRATEGIES)}")
    rows, length = entity.shape
    if not 1 <= slots <= length:
        raise ValueError(f"entmlm.slots={slots} is not in 1..{length}, the tokens of a text")
    keys = row_keys(key, rows)
    entity_keys, token_keys = jax.vmap(lambda k: tuple(jax.random.split(k)))(keys)
    in_entity, dropped = _choose_entities(entity, valid, entity_keys, probability, slots)
    entity_count = in_entity.sum(axis=1)
    wanted = jnp.ceil(min_share * valid.sum(axis=1) - 1e-6).astype(jnp.int32)
    extra = jnp.clip(wanted - entity_count, 0, slots - entity_count)
    outside = valid & (entity == 0)
    token_draw = _uniform(token_keys, length)
    extra = jnp.minimum(extra, outside.sum(axis=1))
    topped = outside & (_rank(jnp.where(outside, token_draw, jnp.inf)) < extra[:, None])
    masked = in_entity | topped
    if strategy == "random":
        count = masked.sum(axis=1)
        free = valid & (entity >= 0)
        masked = free & (_rank(jnp.where(free, token_draw, jnp.inf)) < count[:, None])
        dropped = jnp.zeros_like(dropped)
    positions = _positions(masked, slots)
    weights = jnp.take_along_axis(masked, positions, axis=1).astype(jnp.float32)
    return positions, weights, dropped


def _choose_entities(
    entity: jax.Array, valid: jax.Array, keys: jax.Array, probability: float, slots: int
) -> tuple[jax.Array, jax.Array]:
    """(bool [B,L], the tokens of entities that are masked whole; int [B], chosen entities that did not fit).

    keys: one a row [B].
    """
    numbers = jnp.arange(1, entity.shape[1] + 1)[None, :, None]
    is_member_BxExL = (entity[:, None, :] == numbers) & valid[:, None, :]
    sizes = is_member_BxExL.sum(axis=2)
    present = sizes > 0
    draw = _uniform(keys, entity.shape[1])
    order = _rank(jnp.where(present, draw, jnp.inf))
    chosen = present & ((draw < probability) | (order == 0))
    # An entity is kept if it and the chosen ones drawn before it fit; the draw's order is random among the chosen.
    before_BxExF = chosen[:, None, :] & (order[:, None, :] <= order[:, :, None])
    used = jnp.where(before_BxExF, sizes[:, None, :], 0).sum(axis=2)
    kept = chosen & (used <= slots)
    dropped = (chosen & ~kept).sum(axis=1)
    return (is_member_BxExL & kept[:, :, None]).any(axis=1), dropped


@in_masking
def mask_tokens(tokens: jax.Array, positions: jax.Array, weights: jax.Array, mask_id: int) -> jax.Array:
    """Replaces the tokens [B,L] at the used positions [B,K] by `mask_id`."""
    hit_BxKxL = (positions[:, :, None] == jnp.arange(tokens.shape[1])[None, None, :]) & (weights[:, :, None] > 0)
    return jnp.where(hit_BxKxL.any(axis=1), mask_id, tokens)


@in_masking
def hidden_patches(masked: jax.Array, patches: int) -> jax.Array:
    """bool [B,N], True at the masked positions int [B,K]."""
    return (masked[:, :, None] == jnp.arange(patches)[None, None, :]).any(axis=1)


@in_masking
def take_positions(x: jax.Array, positions: jax.Array) -> jax.Array:
    """[B,K,D]: x [B,N,D] at the positions int [B,K] of each row."""
    return jnp.take_along_axis(x, positions[:, :, None], axis=1)


def token_weights(affirmed: jax.Array, valid: jax.Array) -> jax.Array:
    """Weights for `similarity.text_response`, [B,L]: affirmed entity tokens if a row has any, else its valid tokens."""
    affirmed = affirmed & valid
    chosen = jnp.where(affirmed.any(axis=1, keepdims=True), affirmed, valid)
    return chosen.astype(jnp.float32) / jnp.maximum(chosen.sum(axis=1, keepdims=True), 1).astype(jnp.float32)
