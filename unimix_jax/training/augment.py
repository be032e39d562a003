"""Augmentation and normalisation inside the compiled step, each image by its own key."""

import jax
import jax.numpy as jnp

from unimix_jax.training.keys import Use, use


def crop_and_flip(keys, images, *, pad: int, flip: bool):
    """Pad with black, crop at an offset uniform in 0..2 * pad per axis, flip half of the images.

    Args:
      keys: JAX keys [B], one an image.
      images: uint8[B, H, W, C].
      pad: pixels on every side; 0 for no crop.
      flip: whether to mirror left and right with probability 1/2.

    Returns:
      uint8[B, H, W, C].
    """
    if pad:
        padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        offsets = jax.vmap(lambda key: jax.random.randint(use(key, Use.CROP), (2,), 0, 2 * pad + 1))(keys)
        images = jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), images.shape[1:]))(
            padded, offsets
        )
    if flip:
        mirrored = jax.vmap(lambda key: jax.random.bernoulli(use(key, Use.FLIP)))(keys)
        images = jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    return images


def normalise(images, mean, std):
    """Turn uint8[B, H, W, C] into float32: pixels / 255, less `mean`, over `std` (float32[C])."""
    return (images.astype(jnp.float32) / 255 - mean) / std
