"""What the image encoder takes: pixels, and patches of them."""

import jax
import jax.numpy as jnp

PIXEL_MEAN, PIXEL_STD = 0.5, 0.25


def pixels(images: jax.Array) -> jax.Array:
    """uint8 [B,S,S,1] -> float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255.0


def augmented(canvas: jax.Array, extent: jax.Array, affine: jax.Array, tone: jax.Array, size: int) -> jax.Array:
    """Does on the device what `data.images.transforms.apply_affine` does on the host, to one grey level.

    Args:
      canvas: uint8 [B,C,C,1], each image in the left upper corner, 0 elsewhere.
      extent: int32 [B,2], height and width of the image.
      affine: float32 [B,6]: x = a·(column + 0.5) + b·(row + 0.5) + c and likewise y, in pixels of the canvas.
      tone: float32 [B,2], brightness and contrast.
      size: S, pixels of the result's side.

    Returns:
      uint8 [B,S,S,1].
    """
    side = canvas.shape[1]
    levels = canvas[..., 0]
    height, width = extent[:, 0, None, None], extent[:, 1, None, None]
    total = levels.astype(jnp.int32).sum(axis=(1, 2), keepdims=True)
    mean = total.astype(jnp.float32) / (height * width).astype(jnp.float32)
    brightness, contrast = tone[:, 0, None, None], tone[:, 1, None, None]
    toned = jnp.clip(jnp.rint(brightness * (mean + contrast * (levels - mean))), 0, 255).astype(jnp.uint32)
    # The four pixels that one is interpolated from, in one word: one gather, not four. Beyond the image they weigh 0.
    right = jnp.pad(toned, ((0, 0), (0, 1), (0, 1)))
    corners = toned | right[:, :-1, 1:] << 8 | right[:, 1:, :-1] << 16 | right[:, 1:, 1:] << 24
    place = jnp.arange(size, dtype=jnp.float32) + 0.5
    factors = affine[:, :, None, None]
    x = factors[:, 0] * place[None, None, :] + factors[:, 1] * place[None, :, None] + factors[:, 2]
    y = factors[:, 3] * place[None, None, :] + factors[:, 4] * place[None, :, None] + factors[:, 5]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = jnp.clip(x - 0.5, 0, width - 1), jnp.clip(y - 0.5, 0, height - 1)
    left, top = jnp.floor(x), jnp.floor(y)
    number = (top.astype(jnp.int32) * side + left.astype(jnp.int32)).reshape(len(canvas), -1)
    found = jnp.take_along_axis(corners.reshape(len(canvas), -1), number, axis=1).reshape(x.shape)
    a, b, c, d = ((found >> shift & 255).astype(jnp.float32) for shift in (0, 8, 16, 24))
    above, below = a + (b - a) * (x - left), c + (d - c) * (x - left)
    mixed = jnp.where(inside, above + (below - above) * (y - top), 0)
    return jnp.floor(mixed).astype(jnp.uint8)[..., None]


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
