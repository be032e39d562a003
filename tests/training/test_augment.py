import functools
import itertools

import jax
import numpy as np
import pytest

from unimix_jax.training import augment, augmentations, rng

from .. import quick

IMAGES = np.random.default_rng(0).integers(1, 256, (400, 6, 5, 2), np.uint8)
KEYS = quick.jit(rng.of_views)(np.uint32(0), np.uint32(3), np.arange(400))


def crop_and_flip(keys, images, *, pad, flip):
    """Crop and flip by the keys that the list of augmentations gives."""
    keys_of = lambda purpose: jax.vmap(lambda key: rng.use(key, purpose))(keys)  # noqa: E731
    images = augmentations.crop(keys_of(rng.Use.CROP), images, pad=pad)
    return augmentations.flip(keys_of(rng.Use.FLIP), images, flip=flip)


def candidates(image, pad, flip):
    """Every image that a crop and a flip can make, by the slow way."""
    padded = np.zeros((6 + 2 * pad, 5 + 2 * pad, 2), np.uint8)
    padded[pad : pad + 6, pad : pad + 5] = image
    for dy, dx in np.ndindex(2 * pad + 1, 2 * pad + 1):
        crop = padded[dy : dy + 6, dx : dx + 5]
        yield (dy, dx, 0), crop
        if flip:
            yield (dy, dx, 1), crop[:, ::-1]


@pytest.mark.slow
@pytest.mark.parametrize(("pad", "flip"), [(2, True), (1, False), (0, True)])
def test_crops_and_flips_are_uniform_over_what_they_can_be(pad, flip):
    out = np.asarray(quick.jit(lambda k, x: crop_and_flip(k, x, pad=pad, flip=flip))(KEYS, IMAGES))
    assert out.dtype == np.uint8
    seen = []
    for image, result in zip(IMAGES, out, strict=True):
        match = [at for at, candidate in candidates(image, pad, flip) if np.array_equal(candidate, result)]
        assert len(match) == 1
        seen += match
    for axis, choices in enumerate((2 * pad + 1, 2 * pad + 1, 1 + flip)):
        counts = np.bincount([at[axis] for at in seen], minlength=choices)
        # Five standard deviations of a count of 400 draws.
        np.testing.assert_array_less(np.abs(counts - 400 / choices), 5 * np.sqrt(400 / choices))


def test_without_crop_and_flip_images_stay():
    np.testing.assert_array_equal(crop_and_flip(KEYS, IMAGES, pad=0, flip=False), IMAGES)


def test_a_view_is_augmented_alike_whatever_stands_beside_it():
    crop = functools.partial(crop_and_flip, pad=2, flip=True)
    whole = quick.jit(lambda k, x: crop(k[:8], x[:8]))(KEYS, IMAGES)
    part = quick.jit(lambda k, x: crop(k[5:8], x[5:8]))(KEYS, IMAGES)
    np.testing.assert_array_equal(whole[5:8], part)


def test_keys_differ_by_seed_step_view_and_use():
    drawn = set()
    draw = quick.jit(lambda *of: [jax.random.uniform(rng.use(rng.of_views(*of)[0], purpose)) for purpose in rng.Use])
    for seed, step, view in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        drawn |= {float(number) for number in draw(np.uint32(seed), np.uint32(step), np.array([view]))}
    assert len(drawn) == 4 * len(rng.Use)


def test_normalising_is_pytorchs():
    mean, std = np.float32([0.4, 0.6]), np.float32([0.2, 0.3])
    np.testing.assert_allclose(
        quick.jit(augment.normalise)(IMAGES, mean, std), (IMAGES / 255.0 - mean) / std, rtol=1e-5, atol=1e-6
    )


PHOTOGRAPHS = np.random.default_rng(1).uniform(0.2, 0.6, (400, 4, 3, 3)).astype(np.float32)
GREY = np.array([0.299, 0.587, 0.114])


def jittered(strengths):
    return np.asarray(
        quick.jit(lambda k, x: augmentations.jitter(k, x, jitter=strengths))(KEYS, PHOTOGRAPHS), np.float64
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", range(3))
def test_one_kind_of_jitter_is_a_blend_by_a_uniform_factor(kind):
    out = jittered(tuple(0.4 * (i == kind) for i in range(3)))
    grey = (PHOTOGRAPHS * GREY).sum(-1, keepdims=True)
    other = (0 * grey, grey.mean(axis=(1, 2, 3), keepdims=True), grey)[kind]
    inside = (out > 1e-6) & (out < 1 - 1e-6) & (np.abs(PHOTOGRAPHS - other) > 0.05)
    factors = np.where(inside, (out - other) / np.where(inside, PHOTOGRAPHS - other, 1), np.nan)
    one = np.nanmean(factors, axis=(1, 2, 3))
    assert np.nanmax(np.abs(factors - one[:, None, None, None])) < 1e-4
    assert 0.6 <= one.min() < 0.62
    assert 1.38 < one.max() <= 1.4
    assert abs(one.mean() - 1) < 4 * 0.8 / np.sqrt(12 * 400)


@pytest.mark.slow
def test_the_three_kinds_of_jitter_come_in_every_order():
    # Without values that are cut off the kinds commute.
    images = np.random.default_rng(2).uniform(size=PHOTOGRAPHS.shape).astype(np.float32)
    out, seen = np.asarray(quick.jit(lambda k, x: augmentations.jitter(k, x, jitter=(0.4, 0.4, 0.4)))(KEYS, images)), []

    def drawn(key):
        _, key_factors = jax.random.split(key)
        return jax.random.uniform(key_factors, (3,), np.float32, -1, 1)

    every = 1 + 0.4 * np.asarray(quick.jit(jax.vmap(drawn))(KEYS))
    for factors, image, result in zip(every, images.astype(np.float64), out, strict=True):
        fits = []
        for order in itertools.permutations(range(3)):
            x = image
            for kind in order:
                grey = (x * GREY).sum(-1, keepdims=True)
                x = np.clip(factors[kind] * x + (1 - factors[kind]) * (0, grey.mean(), grey)[kind], 0, 1)
            if np.abs(x - result).max() < 1e-5:
                fits.append(order)
        assert fits
        seen += fits if len(fits) == 1 else []
    counts = [seen.count(order) for order in itertools.permutations(range(3))]
    assert min(counts) > 0.1 * len(seen) > 10  # a sixth each


def test_no_jitter_and_grey_images():
    assert augmentations.jitter(KEYS, PHOTOGRAPHS, jitter=(0.0, 0.0, 0.0)) is PHOTOGRAPHS
    grey = quick.jit(lambda k, x: augmentations.jitter(k, x, jitter=(0.0, 0.0, 0.4)))(KEYS, PHOTOGRAPHS[..., :1])
    np.testing.assert_allclose(grey, PHOTOGRAPHS[..., :1], atol=1e-6)
