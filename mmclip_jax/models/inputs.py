"""What the image encoder takes: pixels, and patches of them."""

import jax
import jax.numpy as jnp

PIXEL_MEAN, PIXEL_STD = 0.5, 0.25


def pixels(images: jax.Array) -> jax.Array:
    """uint8 [B,S,S,1] -> float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255.0


def standardize(unit_pixels: jax.Array) -> jax.Array:
    """Pixels in [0, 1] -> the image encoder's input."""
    return (unit_pixels - PIXEL_MEAN) / PIXEL_STD


def patch_count(image_size: int, patch_size: int) -> int:
    """N, the patches of a square image of so many pixels a side."""
    return (image_size // patch_size) ** 2


def patchify(images: jax.Array, patch_size: int) -> jax.Array:
    """[B,H,W,C] -> [B,N,P*P*C], patches row by row from the top left, pixels row by row within a patch."""
    batch, height, width, channels = images.shape
    if height % patch_size or width % patch_size:
        raise ValueError(f"an image of {height}x{width} pixels does not divide into patches of {patch_size}")
    rows, columns = height // patch_size, width // patch_size
    x = images.reshape(batch, rows, patch_size, columns, patch_size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, patch_size * patch_size * channels)


def unpatchify(patches: jax.Array, patch_size: int, channels: int = 1) -> jax.Array:
    """Undoes `patchify` for square images: [B,N,P*P*C] -> [B,S,S,C]."""
    batch, count, _ = patches.shape
    side = round(count**0.5)
    x = patches.reshape(batch, side, side, patch_size, patch_size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, side * patch_size, side * patch_size, channels)
