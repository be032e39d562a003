"""Augmentations: functions of keys and images, chosen by name in config.data.augment. See `augment`."""

import functools

import jax
import jax.numpy as jnp

from unimix_jax import registry
from unimix_jax.errors import UserError
from unimix_jax.training.rng import Use


@registry.Augmentation(any_dtype=True, purpose=Use.CROP)
def crop(keys: jax.Array, images: jax.Array, *, pad: int) -> jax.Array:
    """Pad with black and crop at an offset uniform in 0..2 * pad per axis.

    Args:
      keys: JAX keys [B], one an image.
      images: [B, H, W, C].
      pad: pixels on every side; 0 for no crop.

    Returns:
      As images.
    """
    if not pad:
        return images
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    offsets = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, 2 * pad + 1))(keys)
    return jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), images.shape[1:]))(
        padded, offsets
    )


@registry.Augmentation(any_dtype=True, purpose=Use.FLIP)
def flip(keys: jax.Array, images: jax.Array, *, flip: bool) -> jax.Array:
    """Mirror half of the images left and right.

    Args:
      keys: JAX keys [B], one an image.
      images: [B, H, W, C].
      flip: whether to do it.

    Returns:
      As images.
    """
    if not flip:
        return images
    mirrored = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


@registry.Augmentation(purpose=Use.JITTER)
def jitter(keys: jax.Array, images: jax.Array, *, jitter: tuple[float, float, float]) -> jax.Array:
    """Change brightness, contrast and saturation of each image by random factors, in a random order.

    Each change is a blend, with a factor uniform in 1 - strength..1 + strength, of the image with black, with its mean
    grey, or with its grey version; values are clipped to 0..1 after each change.

    Args:
      keys: JAX keys [B], one an image.
      images: float32[B, H, W, C] in 0..1, C 1 or 3.
      jitter: strengths of brightness, contrast and saturation, each in 0..1; three zeros change nothing.

    Returns:
      float32[B, H, W, C].

    Raises:
      UserError: images of other than 1 or 3 channels, unless the strengths are zeros.

    Source: torchvision, ColorJitter; ITU-R 601 weights of grey.
    """
    if not any(jitter):
        return images
    _check_channels("jitter", images, "set config.data.jitter to (0,0,0)")
    weights = _grey_weights(images)

    def one(key, image):
        key_order, key_factors = jax.random.split(key)
        order = jax.random.permutation(key_order, 3)
        spread = jnp.asarray(jitter, image.dtype)
        factors = 1 + spread * jax.random.uniform(key_factors, (3,), image.dtype, -1, 1)
        for kind in order:
            grey = (image * weights).sum(axis=-1, keepdims=True)
            other = jnp.where(kind == 0, 0, jnp.where(kind == 1, grey.mean(), grey))
            image = jnp.clip(factors[kind] * image + (1 - factors[kind]) * other, 0, 1)
        return image

    return jax.vmap(one)(keys, images)


OPERATIONS = (  # of `rand_augment`
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast",
    "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip


@registry.Augmentation(
    options={
        "operations": registry.at_least(1),
        "magnitude": registry.at_least(0),
        "bins": registry.at_least(2),
    }
)
def rand_augment(
    keys: jax.Array, images: jax.Array, *, operations: int = 2, magnitude: int = 9, bins: int = 31
) -> jax.Array:
    """Change each image by some of `OPERATIONS`, drawn uniformly with replacement, one after the other.

    Shears, translations and rotations take the nearest pixel, and black from outside of the image. Posterize and
    equalize work on the nearest of 256 levels; the other operations are not rounded, where torchvision rounds to 256
    levels after each one.

    Args:
      keys: JAX keys [B], one an image, used for nothing else.
      images: float32[B, H, W, C] in 0..1, C 1 or 3.
      operations: how many are done to each image.
      magnitude: the strength of those that have one, from 0 to bins - 1.
      bins: number of magnitudes; at the largest one an image is sheared by .3, shifted by 150/331 of a side, rotated
        by 30 degrees, enhanced by .9, left with 4 bits, or inverted above black. The direction is drawn.

    Returns:
      float32[B, H, W, C].

    Raises:
      UserError: a magnitude of bins or more, or images of other than 1 or 3 channels.

    Source: Cubuk et al. 2019; torchvision, RandAugment.
    """
    if magnitude > bins - 1:
        raise UserError(f"magnitude of rand_augment is {magnitude}; of {bins} bins it must be at most {bins - 1}")
    _check_channels("rand_augment", images, "leave it out of config.data.augment")

    def choose(key):
        operation, sign = jax.random.uniform(key, (2, operations))
        return (operation * len(OPERATIONS)).astype(jnp.int32), jnp.where(sign < 0.5, 1, -1)

    def by_parts(image, operation, sign):
        return operate(image, operation, sign, magnitude / (bins - 1))

    def by_switch(image, operation, sign):
        each = [functools.partial(by_parts, operation=i) for i in range(len(OPERATIONS))]
        return jax.lax.switch(operation, [lambda x, s, f=f: f(x, sign=s) for f in each], image, sign)

    def one(apply, image, choices):
        return jax.lax.scan(lambda image, choice: (apply(image, *choice), None), image, choices)[0]

    # A loop of switches does each image's operations only, 6 ms for 128 images of 32 by 32 on one thread of a CPU
    # against 120 ms for all operations of all images; other devices would do the images one after the other.
    return jax.lax.platform_dependent(
        images,
        jax.vmap(choose)(keys),
        cpu=lambda images, choices: jax.lax.map(lambda of: one(by_switch, *of), (images, choices)),
        default=jax.vmap(functools.partial(one, by_parts)),
    )


def operate(image: jax.Array, operation: jax.Array, sign: jax.Array, strength: float) -> jax.Array:
    """Change an image by one of `OPERATIONS`.

    All operations are parts of one program, in which the others change nothing. So there is one resampling under
    `vmap`, where a `switch` would compute that of each shear, translation and rotation.

    Args:
      image: float32[H, W, C] in 0..1, C 1 or 3.
      operation: int32[], or an int that leaves one part of the program only; position in `OPERATIONS`.
      sign: int32[], 1 or -1: the direction of those that have two.
      strength: 0..1, the magnitude as a part of the largest one.

    Returns:
      float32[H, W, C].
    """

    def at(*names):
        return sum(operation == OPERATIONS.index(name) for name in names) > 0

    image = _resampled(image, at, sign, strength)
    factor = 1 + jnp.where(at("brightness", "color", "contrast", "sharpness"), 0.9 * strength * sign, 0)
    grey = (image * _grey_weights(image)).sum(axis=-1, keepdims=True)
    other = jnp.where(at("color"), grey, jnp.where(at("contrast"), grey.mean(), 0))
    other = jnp.where(at("sharpness"), _smooth(image), other)
    image = jnp.clip(factor * image + (1 - factor) * other, 0, 1)
    levels = jnp.round(255 * image).astype(jnp.int32)
    lost = round(4 * strength)  # bits
    low, high = image.min(axis=(0, 1)), image.max(axis=(0, 1))
    spread = (image - low) / jnp.where(high > low, high - low, 1)
    image = jnp.where(at("posterize"), (levels >> lost << lost) / 255, image)
    image = jnp.where(at("solarize") & (image >= 1 - strength), 1 - image, image)
    image = jnp.where(at("autocontrast") & (high > low), spread, image)
    return jnp.where(at("equalize"), _equalized(levels) / 255, image)


def _check_channels(name, images, instead):
    """Refuse images of which no grey version is known."""
    if images.shape[-1] not in (1, 3):
        raise UserError(
            f"the augmentation {name} takes images of 1 or 3 channels, not of {images.shape[-1]}: {instead}"
        )


def _grey_weights(image):
    """Return the ITU-R 601 weights of grey, float32[C]."""
    return jnp.asarray([0.299, 0.587, 0.114] if image.shape[-1] == 3 else [1.0], image.dtype)


def _resampled(image, at, sign, strength):
    """Shear, shift or rotate an image: each pixel is the nearest one of where its centre comes from, else black."""
    height, width, _ = image.shape
    shear, angle = 0.3 * strength * sign, jnp.deg2rad(30 * strength * sign)
    shift = [int(150 / 331 * side * strength) * sign for side in (height, width)]
    rows, columns = jnp.arange(height)[:, None] + 0.5, jnp.arange(width) + 0.5
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    up, left = rows - height / 2, columns - width / 2
    from_row = rows + jnp.where(at("shear_y"), shear * columns, 0) - jnp.where(at("translate_y"), shift[0], 0)
    from_column = columns + jnp.where(at("shear_x"), shear * rows, 0) - jnp.where(at("translate_x"), shift[1], 0)
    from_row = jnp.where(at("rotate"), sin * left + cos * up + height / 2, from_row)
    from_column = jnp.where(at("rotate"), cos * left - sin * up + width / 2, from_column)
    row, column = (jnp.floor(x).astype(jnp.int32) for x in (from_row, from_column))
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    place = jnp.clip(row * width + column, 0, height * width - 1)
    return jnp.where(inside[..., None], image.reshape(height * width, -1)[place], 0)


def _smooth(image):
    """Return the means of 3 by 3 pixels, the middle one five times; border pixels stay."""
    height, width, _ = image.shape
    if min(height, width) < 3:
        return image
    rows = image[:-2] + image[1:-1] + image[2:]
    inner = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * image[1:-1, 1:-1]) / 13
    return image.at[1:-1, 1:-1].set(inner)


def _equalized(levels):
    """Spread the levels int32[H, W, C] of each channel over 0..255 by their ranks, as PIL does."""
    flat = levels.reshape(-1, levels.shape[-1]).T
    counts = jax.vmap(lambda channel: jnp.zeros(256, jnp.int32).at[channel].add(1))(flat)
    below = jnp.cumsum(counts, axis=1) - counts
    step = (flat.shape[1] - (flat == flat.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True)) // 255
    table = jnp.where(step > 0, jnp.minimum((below + step // 2) // jnp.maximum(step, 1), 255), jnp.arange(256))
    return jnp.take_along_axis(table, flat, axis=1).T.reshape(levels.shape)


_TRIES = 10  # to find a rectangle that fits into the image, as torchvision


@registry.Augmentation(
    options={
        "probability": registry.within(0, 1),
        "min_area": registry.Bound(lambda v: 0 < v <= 1, "above 0 and at most 1"),
        "max_area": registry.Bound(lambda v: 0 < v <= 1, "above 0 and at most 1"),
        "min_aspect": registry.Bound(lambda v: 0 < v <= 1, "above 0 and at most 1"),
    }
)
def random_erasing(
    keys: jax.Array,
    images: jax.Array,
    *,
    mean: jax.Array | float,
    probability: float = 0.25,
    min_area: float = 0.02,
    max_area: float = 1 / 3,
    min_aspect: float = 0.3,
) -> jax.Array:
    """Fill a random rectangle of some of the images with one colour.

    Its part of the area is uniform in min_area..max_area, the logarithm of height / width between those of min_aspect
    and its inverse, its place uniform. A rectangle as high or as wide as the image is drawn anew, ten times at most.

    Args:
      keys: JAX keys [B], one an image, used for nothing else.
      images: float32[B, H, W, C].
      mean: float32[C] or one number, which fills the rectangle: the mean of the training images, which is 0 after
        normalisation, where torchvision and timm erase.
      probability: of erasing, for each image.
      min_area: above 0, part of the image's area.
      max_area: at least min_area, up to 1.
      min_aspect: above 0, up to 1.

    Returns:
      float32[B, H, W, C].

    Raises:
      UserError: the smallest area is above the largest one.

    Source: Zhong et al. 2020; torchvision, RandomErasing, whose largest aspect is 3.3; timm, whose defaults these are.
    """
    if min_area > max_area:
        raise UserError(f"min_area of random_erasing is {min_area:g}; it must be at most max_area, {max_area:g}")
    sides = jnp.asarray(images.shape[1:3])

    def one(key, image):
        drawn = jax.random.uniform(key, (2 * _TRIES + 3,))
        part, place, aspect = drawn[:_TRIES], drawn[_TRIES : _TRIES + 2], drawn[_TRIES + 3 :]
        area = sides.prod() * (min_area + (max_area - min_area) * part)
        aspect = jnp.exp((1 - 2 * aspect) * jnp.log(min_aspect))
        size = jnp.round(jnp.sqrt(jnp.stack([area * aspect, area / aspect], axis=1))).astype(jnp.int32)
        fits = (size < sides).all(axis=1)
        size = size[fits.argmax()]
        first = (place * (sides - size + 1)).astype(jnp.int32)
        erases = (drawn[_TRIES + 2] < probability) & fits.any()
        rows, columns = (
            (first[i] <= jnp.arange(side)) & (jnp.arange(side) < first[i] + size[i])
            for i, side in enumerate(image.shape[:2])
        )
        inside = erases & rows[:, None] & columns
        return jnp.where(inside[..., None], jnp.asarray(mean, image.dtype), image)

    return jax.vmap(one)(keys, images)
