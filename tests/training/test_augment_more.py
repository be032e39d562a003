import functools
import logging

import jax
import numpy as np
import pytest

from unimix_jax.config import default
from unimix_jax.errors import UserError
from unimix_jax.training import augment, augmentations

from .. import quick

BLENDS = ("brightness", "color", "contrast", "sharpness")
IMAGES = np.random.default_rng(0).uniform(0.1, 1, (64, 10, 12, 3)).astype(np.float32)


@functools.cache
def keys(size=64, seed=0):
    return quick.jit(lambda: jax.random.split(jax.random.key(seed), size))()


@functools.cache
def every_operation(shape, magnitude):
    """The compiled program of all operations on one image, by (image, sign)."""
    count, strength = np.arange(len(augmentations.OPERATIONS)), magnitude / 30
    one = lambda image, operation, sign: augmentations.operate(image, operation, sign, strength)  # noqa: E731
    return quick.jit(jax.vmap(one, in_axes=(None, 0, None))), count


@pytest.mark.slow
@pytest.mark.parametrize("magnitude", [9, 30])
@pytest.mark.parametrize("name", ["colour", "grey"])
def test_each_operation_is_torchvisions(golden, name, magnitude):
    file = golden("rand_augment")
    image = file[name].astype(np.float32) / 255
    program, operations = every_operation(image.shape, magnitude)
    for sign in (1, -1):
        out = 255 * np.asarray(program(image, operations, sign))
        expected = file[f"{name}_{magnitude}_{sign}"].astype(np.float32)
        for operation, ours, theirs in zip(augmentations.OPERATIONS, out, expected, strict=True):
            # Torchvision cuts off fractions of a level; it does so twice where the image is blended with its grey or
            # smooth form, which weighs .9 * magnitude / 30.
            tolerance = 1e-3
            if operation in (*BLENDS, "autocontrast"):
                tolerance += 1 + (0.9 * magnitude / 30 if operation in BLENDS else 0)
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, err_msg=f"{operation}, sign {sign}")


def test_the_golden_images_are_changed_by_all_operations_but_those_that_cannot(golden):
    file = golden("rand_augment")
    for name in ("colour", "grey"):
        same = {
            operation
            for operation, image in zip(augmentations.OPERATIONS, file[f"{name}_9_1"], strict=True)
            if np.array_equal(image, file[name])
        }
        assert same == ({"identity"} if name == "colour" else {"identity", "color", "equalize"})


@functools.cache
def augmented(count, magnitude=9):
    function = functools.partial(augmentations.rand_augment, operations=count, magnitude=magnitude)
    return quick.jit(function)


def test_an_image_of_one_colour_has_no_contrast_to_stretch():
    grey = np.full((4, 4, 3), 0.3, np.float32)
    program, operations = every_operation((4, 4, 3), 9)
    out = np.asarray(program(grey, operations, 1))
    for operation in ("identity", "color", "contrast", "sharpness", "autocontrast"):
        np.testing.assert_allclose(out[augmentations.OPERATIONS.index(operation)], 0.3, rtol=1e-6)
    assert np.isfinite(out).all()


@pytest.mark.slow
def test_rand_augment_draws_operations_and_signs_uniformly():
    """Each image is changed as one of the operations changes it."""
    image, size = np.float32(np.rint(255 * IMAGES[0])) / 255, 2000
    program, operations = every_operation(image.shape, 9)
    known = np.stack([np.asarray(program(image, operations, sign)) for sign in (1, -1)])
    out = np.asarray(augmented(1)(keys(size), np.broadcast_to(image, (size, *image.shape))))
    near = np.abs(out[:, None, None] - known).max(axis=(3, 4, 5)) < 1e-5  # [image, sign, operation]
    assert near.any(axis=(1, 2)).all()
    counts = near.sum(axis=0)
    one_sign = [augmentations.OPERATIONS.index(n) for n in ("posterize", "solarize", "autocontrast")]
    signed = slice(augmentations.OPERATIONS.index("shear_x"), augmentations.OPERATIONS.index("posterize"))
    expected = size / 14
    np.testing.assert_array_less(np.abs(counts[:, signed] - expected / 2), 5 * np.sqrt(expected / 2))
    np.testing.assert_array_less(np.abs(counts[0, one_sign] - expected), 5 * np.sqrt(expected))
    # The image has too few pixels to be equalised, so that the result is the identity's.
    assert abs(counts[0, 0] - 2 * expected) < 5 * np.sqrt(2 * expected)


@pytest.mark.slow
def test_rand_augment_is_the_same_for_one_key_whatever_stands_beside_it():
    whole = np.asarray(augmented(2)(keys(), IMAGES))
    at = np.arange(64)
    at[:8], at[8:] = np.arange(24, 32), 63 - np.arange(56)
    moved = augmented(2)(keys()[at], IMAGES[at])
    np.testing.assert_array_equal(whole[at], moved)
    other = augmented(2)(keys(seed=1), IMAGES)
    assert (np.asarray(whole) != np.asarray(other)).any(axis=(1, 2, 3)).mean() > 0.9
    assert whole.shape == IMAGES.shape
    assert whole.dtype == np.float32
    assert np.asarray(whole).min() >= 0
    assert np.asarray(whole).max() <= 1


@pytest.mark.slow
def test_the_program_of_other_devices_gives_what_that_of_cpus_gives(monkeypatch):
    on_cpu = np.asarray(augmented(2)(keys(), IMAGES))
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *of, cpu, default: default(*of))
    elsewhere = np.asarray(quick.jit(lambda keys, images: augmentations.rand_augment(keys, images))(keys(), IMAGES))
    # Float32 in another order can move a pixel over the border of a level, or of the pixel that it is taken from.
    assert (np.abs(on_cpu - elsewhere) > 1e-5).mean() < 1e-3


def test_rand_augment_takes_grey_images_and_no_operations():
    grey = jax.eval_shape(augmentations.rand_augment, keys(), IMAGES[..., :1])
    assert (grey.shape, grey.dtype) == ((64, 10, 12, 1), np.float32)
    none = quick.jit(functools.partial(augmentations.rand_augment, operations=0))
    np.testing.assert_array_equal(none(keys(), IMAGES), IMAGES)


@functools.cache
def erasing(mean=0.0, **options):
    return quick.jit(functools.partial(augmentations.random_erasing, mean=mean, **options))


def rectangles(size, shape, **options):
    """The part of each image that was erased, and for each that was: its height and width."""
    images = np.ones((size, *shape, 1), np.float32)
    erased = np.asarray(erasing(**options)(keys(size), images))[..., 0] == 0
    heights, widths = erased.any(axis=2).sum(axis=1), erased.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(erased.sum(axis=(1, 2)), heights * widths)  # nothing but rectangles
    for sides, axis in ((heights, 2), (widths, 1)):
        lines = erased.any(axis=axis)
        first, last = lines.argmax(axis=1), lines.shape[1] - 1 - lines[:, ::-1].argmax(axis=1)
        np.testing.assert_array_equal((last - first + 1)[sides > 0], sides[sides > 0])
    return erased, heights, widths


def torchvisions_rectangle(random, height, width):
    """Its `get_params` once more, with timm's largest area and the inverse of the smallest aspect."""
    for _ in range(10):
        area, aspect = height * width * random.uniform(0.02, 1 / 3), np.exp(random.uniform(np.log(0.3), -np.log(0.3)))
        size = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if size[0] < height and size[1] < width:
            return *size, random.integers(height - size[0] + 1), random.integers(width - size[1] + 1)
    return 0, 0, 0, 0


@pytest.mark.slow
def test_erased_rectangles_are_distributed_as_torchvisions():
    size, shape, random = 20_000, (16, 12), np.random.default_rng(0)
    erased, heights, widths = rectangles(size, shape, probability=1.0)
    theirs = np.array([torchvisions_rectangle(random, *shape) for _ in range(size)])
    first = erased.any(axis=2).argmax(axis=1), erased.any(axis=1).argmax(axis=1)
    for ours, expected in zip((heights, widths, *first), theirs.T, strict=True):
        ours, expected = (np.bincount(x, minlength=20) for x in (ours, expected))
        np.testing.assert_array_less(np.abs(ours - expected), 5 * np.sqrt(ours + expected + 1))
    areas = heights * widths / np.prod(shape)
    # Two means of this size; areas have a standard deviation of .09.
    assert abs(areas.mean() - (theirs[:, 0] * theirs[:, 1]).mean() / np.prod(shape)) < 5 * 0.09 * np.sqrt(2 / size)


@pytest.mark.slow
def test_images_are_erased_with_the_probability_and_the_colour_asked_for():
    size, colour = 4000, np.float32([0.2, 0.4, 0.6])
    images = np.ones((size, 9, 9, 3), np.float32)
    out = np.asarray(erasing(tuple(colour.tolist()), probability=0.25)(keys(size), images))
    changed = (out != 1).any(axis=(1, 2, 3))
    assert abs(changed.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / size)
    np.testing.assert_array_equal(out[(out != 1).all(axis=3)], np.broadcast_to(colour, ((out != 1).all(3).sum(), 3)))
    np.testing.assert_array_equal(erasing(probability=0.0)(keys(), IMAGES), IMAGES)


def test_a_rectangle_that_never_fits_leaves_the_image():
    """All of the area at the aspect 1: as high and as wide as the image."""
    never = erasing(probability=1.0, min_area=1.0, max_area=1.0, min_aspect=1.0)
    np.testing.assert_array_equal(never(keys(), IMAGES), IMAGES)


@pytest.mark.slow
def test_erasing_is_the_same_for_one_key_whatever_stands_beside_it():
    erase = erasing(probability=0.5)
    whole = np.asarray(erase(keys(), IMAGES))
    np.testing.assert_array_equal(whole[::-1], erase(keys()[::-1], IMAGES[::-1]))
    assert (whole != np.asarray(erase(keys(seed=1), IMAGES))).any(axis=(1, 2, 3)).mean() > 0.3


def built(channels=3, **changes):
    """The augmentations of a config, checked on images of some channels."""
    data = default().data
    data.update({key: value for key, value in changes.items() if key != "options"})
    with data.augment_options.unlocked():
        data.augment_options.update(changes.get("options", {}))
    augmentations = augment.build(data, np.zeros(channels, np.float32))
    augment.check(augmentations, (8, 8, channels))
    return augmentations


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": {"rand_augment": {"magnitude": 40}}}, "magnitude of rand_augment is 40; of 31 bins .* at most 30"),
        ({"options": {"random_erasing": {"min_area": 0.9}}}, "min_area of random_erasing is 0.9; .* max_area, 0.333"),
        ({"options": {"random_erasing": 5}}, "random_erasing is 5; it holds options by their names: write .*.OPTION"),
        ({"channels": 4}, "rand_augment takes images of 1 or 3 channels, not of 4: leave it out of config.data.augm"),
        ({"channels": 4, "jitter": (0.1, 0.0, 0.0), "augment": ("jitter",)}, "jitter takes .* of 4: set config.data.j"),
    ],
)
def test_options_and_images_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        built(**{"augment": ("crop", "flip", "jitter", "rand_augment", "random_erasing")} | changes)


def test_the_default_augmentations_take_any_number_of_channels():
    assert len(built(channels=4)) == 3


def shifted(keys, images, *, pad):
    return images


def test_a_field_is_told_unless_an_augmentation_takes_it(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("unimix_jax"), "propagate", True)
    built(augment=(f"{__name__}:shifted",), flip=False)
    assert not caplog.text
    built(augment=("flip",), pad=2)
    assert "config.data.pad is 2, but no augmentation of config.data.augment takes it" in caplog.text
