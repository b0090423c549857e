"""How patches and tokens respond to each other: cosines, the response map of AttMIM, the text that a patch attends to.

Everything here is float32: bfloat16 responses would tie. Products are of `PRECISION`.
"""

import jax
import jax.numpy as jnp

# On TPUs three bfloat16 products in place of six, on NVIDIA GPUs TensorFloat-32 (10 bits) in place of float32 outside
# the tensor cores; a CPU computes float32 anyway. Masks stay the same where margins exceed 1e-4
# (tests/models/test_precision.py).
PRECISION = "high"


def normalize(x: jax.Array) -> jax.Array:
    """L2-normalises the last axis in float32; a zero vector stays zero and has a zero gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))


def text_response(patches: jax.Array, tokens: jax.Array, weights: jax.Array, temperature: float) -> jax.Array:
    """How much each patch responds to the text: r_n = sum_l w_l softmax_n(<v_n, u_l> / temperature).

    Args:
      patches: [B,N,E] and tokens: [B,L,E]; L2-normalised inside.
      weights: [B,L], at least 0; normalised to sum 1 inside (a row of zeros gives a response of zero).
      temperature: tau_a > 0.

    Returns:
      Response float32 [B,N]; each row sums to 1. docs/method.md, "AttMIM".
    """
    attention = token_attention(patches, tokens, temperature)
    weights = weights.astype(jnp.float32)
    weights = weights / jnp.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
    return jnp.einsum("bl,bln->bn", weights, attention, precision="highest")


def token_attention(patches: jax.Array, tokens: jax.Array, temperature: float) -> jax.Array:
    """softmax_n(<v_n, u_l> / temperature), float32 [B,L,N]: for each token its attention over the patches."""
    patches, tokens = normalize(patches), normalize(tokens)
    # Without the barrier libtpu fuses this product with the two projections into a convolution and crashes.
    patches, tokens = jax.lax.optimization_barrier((patches, tokens))
    similarity = jnp.einsum("bnd,bld->bln", patches, tokens, precision=PRECISION)
    return jax.nn.softmax(similarity / temperature, axis=-1)


def attended_text(queries: jax.Array, keys: jax.Array, features: jax.Array, valid: jax.Array) -> jax.Array:
    """A_r = softmax_l(<q_n, k_l> / sqrt(E)) t_l over valid tokens: for each patch the text it attends to, [B,N,D].

    Args:
      queries: of the patches, [B,N,E]; keys: of the tokens, [B,L,E]; both float32.
      features: T [B,L,D]; valid: bool [B,L]. docs/method.md, "AttMIM".
    """
    queries, keys = jax.lax.optimization_barrier((queries, keys))
    logits = jnp.einsum("bne,ble->bnl", queries, keys, precision=PRECISION) * queries.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(valid[:, None, :], logits, jnp.finfo(jnp.float32).min), axis=-1)
    return jnp.einsum("bnl,bld->bnd", weights.astype(features.dtype), features)
