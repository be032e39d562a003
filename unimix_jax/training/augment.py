"""The augmentations of a run, and normalisation, inside of the compiled step; each image has its own random key."""

import functools
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from unimix_jax import registry
from unimix_jax.config import fields
from unimix_jax.errors import UserError, described, one_of, shown
from unimix_jax.training.rng import Use, use

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_log = logging.getLogger(__name__)

_FIELDS = ("pad", "flip", "jitter")  # of config.data, for augmentations that ask for them


def build(data: "ConfigDict", mean: np.ndarray) -> tuple[functools.partial, ...]:
    """Return the augmentations that a config names, in their order, with their options.

    Args:
      data: config.data with `augment`, `augment_options`, and the fields that augmentations ask for.
      mean: float32[C], of the training images / 255.

    Returns:
      Functions (keys, images) -> images, see `apply`.

    Raises:
      UserError: an unknown augmentation or option, or one that is named twice.
    """
    context = {name: data[name] for name in _FIELDS} | {"mean": mean}
    options = data.augment_options.to_dict()
    short_names = [name.rpartition(":")[2] for name in data.augment]
    for name in short_names:
        if short_names.count(name) > 1:
            raise UserError(f"config.data.augment names {name} twice; each augmentation has its own random keys once")
    for name in options:
        one_of("augmentation of config.data.augment_options", name, short_names)
        if not isinstance(options[name], dict):
            where = f"config.data.augment_options.{name}"
            raise UserError(f"{where} is {options[name]!r}; it holds options by their names: write {where}.OPTION")
    bound = [
        registry.bind("augmentation", {"name": name, **options.get(short, {})}, context)
        for name, short in zip(data.augment, short_names, strict=True)
    ]
    augmentations = tuple(augmentation for augmentation in bound if augmentation is not None)  # this kind has no "none"
    for field in _FIELDS:
        by_user = np.any(data[field]) and data[field] != fields.FIELDS[f"data.{field}"].default_for(data.source)
        if by_user and not any(field in augmentation.keywords for augmentation in augmentations):
            _log.warning(
                "config.data.%s is %s, but no augmentation of config.data.augment takes it", field, data[field]
            )
    return augmentations


def check(augmentations: Sequence[functools.partial], image_shape: tuple[int, int, int]) -> None:
    """Refuse augmentations that fail on images of a shape or with their options, or that return other shapes.

    Args:
      augmentations: of `build`.
      image_shape: (H, W, C).

    Raises:
      UserError: the augmentation, and what it does.
    """
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    for augmentation in augmentations:
        name = getattr(augmentation.func, "__name__", augmentation.func)
        try:
            result = jax.eval_shape(augmentation, keys, images)
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # the augmentation may be the user's, and raise anything
            raise UserError(f"the augmentation {name} fails on images {image_shape}: {described(error)}") from error
        if (getattr(result, "shape", None), getattr(result, "dtype", None)) != (images.shape, images.dtype):
            raise UserError(
                f"the augmentation {name} returns {shown(result)} for images {shown(images)}; it must return float32 "
                "images of the same shape"
            )


def apply(augmentations: Sequence[functools.partial], keys: jax.Array, images: jax.Array) -> jax.Array:
    """Augment images, one function after the other.

    Args:
      augmentations: functions (keys, images) -> images. A function with the trait `any_dtype` gets the images as they
        are, any other one float32 in 0..1. Each gets keys of its own.
      keys: JAX keys [B], one a view.
      images: uint8[B, H, W, C].

    Returns:
      float32[B, H, W, C] in 0..1.
    """
    scaled = False
    for place, augmentation in enumerate(augmentations):
        traits = registry.traits("augmentation", augmentation)
        if not (traits.any_dtype or scaled):
            images, scaled = unit(images), True
        images = augmentation(_keys_of(traits, place, keys), images)
    return images if scaled else unit(images)


def _keys_of(traits: registry.Augmentation, place: int, keys: jax.Array) -> jax.Array:
    """Return the keys of the augmentation at a place of the list."""
    if traits.purpose is not None:
        return jax.vmap(lambda key: use(key, traits.purpose))(keys)
    return jax.vmap(lambda key: jax.random.fold_in(use(key, Use.AUGMENT), place))(keys)


def normalise(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Return (pixels / 255 - mean) / std as float32 for uint8[B, H, W, C]; mean and std are float32[C]."""
    return standardise(unit(images), mean, std)


def unit(images: jax.Array) -> jax.Array:
    """Return pixels / 255 as float32 for uint8[B, H, W, C]."""
    return images.astype(jnp.float32) / 255


def standardise(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Return (images - mean) / std for float32[B, H, W, C] in 0..1; mean and std are float32[C]."""
    return (images - mean) / std
