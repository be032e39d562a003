"""Augmentation and normalisation inside of the compiled step; each image has its own random key."""

import jax
import jax.numpy as jnp

from unimix_jax.training.rng import Use, use


def crop_and_flip(keys: jax.Array, images: jax.Array, *, pad: int, flip: bool) -> jax.Array:
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


def jitter(keys: jax.Array, images: jax.Array, strengths: tuple[float, float, float]) -> jax.Array:
    """Change brightness, contrast and saturation of each image by random factors, in a random order.

    Each change is a blend, with a factor uniform in 1 - strength..1 + strength, of the image with black, with its mean
    grey, or with its grey version; values are clipped to 0..1 after each change.

    Args:
      keys: JAX keys [B], one an image.
      images: float32[B, H, W, C] in 0..1, C 1 or 3.
      strengths: of brightness, contrast and saturation, each in 0..1; three zeros change nothing.

    Returns:
      float32[B, H, W, C].

    Source: torchvision, ColorJitter; ITU-R 601 weights of grey.
    """
    if not any(strengths):
        return images
    weights = jnp.asarray([0.299, 0.587, 0.114] if images.shape[-1] == 3 else [1.0], images.dtype)

    def one(key, image):
        key_order, key_factors = jax.random.split(use(key, Use.JITTER))
        order = jax.random.permutation(key_order, 3)
        spread = jnp.asarray(strengths, image.dtype)
        factors = 1 + spread * jax.random.uniform(key_factors, (3,), image.dtype, -1, 1)
        for kind in order:
            grey = (image * weights).sum(axis=-1, keepdims=True)
            other = jnp.where(kind == 0, 0, jnp.where(kind == 1, grey.mean(), grey))
            image = jnp.clip(factors[kind] * image + (1 - factors[kind]) * other, 0, 1)
        return image

    return jax.vmap(one)(keys, images)


def normalise(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Return (pixels / 255 - mean) / std as float32 for uint8[B, H, W, C]; mean and std are float32[C]."""
    return standardise(unit(images), mean, std)


def unit(images: jax.Array) -> jax.Array:
    """Return pixels / 255 as float32 for uint8[B, H, W, C]."""
    return images.astype(jnp.float32) / 255


def standardise(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Return (images - mean) / std for float32[B, H, W, C] in 0..1; mean and std are float32[C]."""
    return (images - mean) / std
