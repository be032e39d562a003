import jax
import numpy as np
import pytest

from unimix_jax.training import augment, keys

IMAGES = np.random.default_rng(0).integers(1, 256, (400, 6, 5, 2), np.uint8)
KEYS = keys.of_views(np.uint32(0), np.uint32(3), np.arange(400))


def candidates(image, pad, flip):
    """Every image that a crop and a flip can make, by the slow way."""
    padded = np.zeros((6 + 2 * pad, 5 + 2 * pad, 2), np.uint8)
    padded[pad : pad + 6, pad : pad + 5] = image
    for dy, dx in np.ndindex(2 * pad + 1, 2 * pad + 1):
        crop = padded[dy : dy + 6, dx : dx + 5]
        yield (dy, dx, 0), crop
        if flip:
            yield (dy, dx, 1), crop[:, ::-1]


@pytest.mark.parametrize(("pad", "flip"), [(2, True), (1, False), (0, True)])
def test_crops_and_flips_are_uniform_over_what_they_can_be(pad, flip):
    out = np.asarray(jax.jit(lambda k, x: augment.crop_and_flip(k, x, pad=pad, flip=flip))(KEYS, IMAGES))
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
    np.testing.assert_array_equal(augment.crop_and_flip(KEYS, IMAGES, pad=0, flip=False), IMAGES)


def test_a_view_is_augmented_alike_whatever_stands_beside_it():
    whole = augment.crop_and_flip(KEYS[:8], IMAGES[:8], pad=2, flip=True)
    part = augment.crop_and_flip(KEYS[5:8], IMAGES[5:8], pad=2, flip=True)
    np.testing.assert_array_equal(whole[5:8], part)


def test_keys_differ_by_seed_step_view_and_use():
    drawn = set()
    for seed, step, view in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        (key,) = keys.of_views(np.uint32(seed), np.uint32(step), np.array([view]))
        drawn |= {float(jax.random.uniform(keys.use(key, purpose))) for purpose in keys.Use}
    assert len(drawn) == 4 * len(keys.Use)


def test_normalising_is_pytorchs():
    mean, std = np.float32([0.4, 0.6]), np.float32([0.2, 0.3])
    np.testing.assert_allclose(
        augment.normalise(IMAGES, mean, std), (IMAGES / 255.0 - mean) / std, rtol=1e-5, atol=1e-6
    )
