import numpy as np
from ml_collections import ConfigDict

from unimix_jax.data import longtail, sources
from unimix_jax.data.digests import digest

CUT = {"imbalance": 20.0, "profile": "exp", "subset_seed": 0, "split_seed": 0}


def digits(**changes):
    return sources.load(ConfigDict({"source": "digits", **CUT, **changes}))


def identity(image, label):
    return image.tobytes() + bytes([label])


def test_digits_are_scikit_learns_and_its_splits_share_no_image():
    from sklearn.datasets import load_digits

    original = load_digits()
    pixels = np.rint(original.data * 255 / 16).astype(np.uint8)
    identities = [identity(*pair) for pair in zip(pixels, original.target, strict=True)]
    assert len(set(identities)) == 1797  # no image occurs twice
    splits = digits()
    at = {}
    for name in ("train", "validation", "test"):
        source = getattr(splits, name)
        assert source.images.shape[1:] == (8, 8, 1)
        at[name] = {identity(*pair) for pair in zip(source.images, source.labels, strict=True)}
        assert len(at[name]) == len(source.labels)
        assert at[name] <= set(identities)
    assert not at["train"] & at["test"]
    assert not at["train"] & at["validation"]
    assert not at["validation"] & at["test"]


def test_digits_are_long_tailed_and_evaluated_on_balanced_splits():
    splits = digits()
    np.testing.assert_array_equal(splits.counts, longtail.profile("exp", 99, 10, 20))
    np.testing.assert_array_equal(np.bincount(splits.test.labels), [50] * 10)
    np.testing.assert_array_equal(np.bincount(splits.validation.labels), [25] * 10)
    pixels = splits.train.images / 255
    np.testing.assert_allclose(splits.train.mean, pixels.mean(), rtol=1e-6)
    np.testing.assert_allclose(splits.train.std, pixels.std(), rtol=1e-6)


def test_the_split_seed_moves_the_test_set_and_the_subset_seed_does_not():
    base = digits()
    assert digest(digits().train) == digest(base.train)
    assert digest(digits(subset_seed=1).test) == digest(base.test)
    assert digest(digits(subset_seed=1).train) != digest(base.train)
    assert digest(digits(split_seed=1).test) != digest(base.test)
