import logging

import numpy as np
import pytest
from ml_collections import ConfigDict

from unimix_jax.data import sources
from unimix_jax.data.digests import digest
from unimix_jax.errors import UserError

CUT = {"imbalance": 20.0, "profile": "exp", "subset_seed": 0, "split_seed": 0}


@pytest.fixture
def arrays(tmp_path):
    """Return load(**changes): an .npz of three classes with some arrays replaced, or removed by None."""
    random = np.random.default_rng(0)
    content = {
        "train_images": random.integers(0, 256, (12, 5, 4), np.uint8),
        "train_labels": np.repeat([0, 1, 2], 4),
        "test_images": random.integers(0, 256, (3, 5, 4), np.uint8),
        "test_labels": np.arange(3),
    }

    def load(imbalance=1.0, **changes):
        kept = {name: value for name, value in {**content, **changes}.items() if value is not None}
        np.savez(tmp_path / "images.npz", **kept)
        data = {"source": "arrays", **CUT, "file": str(tmp_path / "images.npz"), "imbalance": imbalance}
        return sources.load(ConfigDict(data))

    load.content = content
    return load


def test_arrays_come_back_as_they_are(arrays):
    splits = arrays()
    np.testing.assert_array_equal(splits.train.images[..., 0], arrays.content["train_images"])
    assert splits.validation is None
    assert splits.train.class_names == ("0", "1", "2")
    assert list(splits.evaluated) == ["test"]


def test_arrays_with_colours_names_and_validation(arrays):
    colour = np.zeros((12, 5, 4, 3), np.uint8)
    splits = arrays(
        train_images=colour,
        test_images=colour[:3],
        validation_images=colour[:3],
        validation_labels=np.array([2, 1, 0]),
        class_names=np.array(["cat", "dog", "fox"]),
    )
    assert splits.validation.class_names == ("cat", "dog", "fox")
    assert list(splits.evaluated) == ["validation", "test"]
    np.testing.assert_allclose(splits.train.std, [1 / 255] * 3)  # flat images divide by no zero


def test_arrays_in_any_order_of_memory_and_names_in_bytes(arrays):
    images = np.asfortranarray(arrays.content["train_images"])
    splits = arrays(train_images=images, class_names=np.array([b"cat", b"dog", b"fox"]))
    assert digest(splits.train) == digest(arrays().train)
    assert splits.train.class_names == ("cat", "dog", "fox")


def test_arrays_with_other_names_are_ignored_with_a_warning(arrays, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("unimix_jax"), "propagate", True)
    arrays(val_images=np.zeros((2, 5, 4), np.uint8))
    assert "val_images in" in caplog.text
    assert "is ignored (did you mean '" in caplog.text


@pytest.mark.parametrize(
    "other",
    [np.array("2020-01-01", "M8[s]"), np.zeros(3, [("a", "f4"), ("b", "i4")]), np.array([{}])],
    ids=["time", "fields", "objects"],
)
def test_arrays_with_other_names_may_be_of_any_kind(arrays, caplog, monkeypatch, other):
    monkeypatch.setattr(logging.getLogger("unimix_jax"), "propagate", True)
    assert digest(arrays(when=other).train) == digest(arrays().train)
    assert "when in" in caplog.text


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_in_front_are_put_behind_with_a_warning(arrays, caplog, monkeypatch, channels):
    monkeypatch.setattr(logging.getLogger("unimix_jax"), "propagate", True)
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 9, channels), np.uint8)
    front = images.transpose(0, 3, 1, 2)
    splits = arrays(train_images=front, test_images=images[:3])
    np.testing.assert_array_equal(splits.train.images, images)
    assert splits.train.mean.shape == (channels,)
    assert f"read as {channels} channels in front" in caplog.text
    assert digest(splits.train) == digest(arrays(train_images=images, test_images=images[:3]).train)


@pytest.mark.parametrize("shape", [(12, 3, 9, 3), (12, 9, 9, 30), (12, 2, 2, 2), (12, 9, 3, 4)])
def test_channels_behind_stay_there(arrays, shape):
    images = np.zeros(shape, np.uint8)
    assert arrays(train_images=images, test_images=images[:3]).train.images.shape == shape


def test_arrays_can_be_cut(arrays):
    np.testing.assert_array_equal(arrays(imbalance=4.0).counts, [4, 2, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": None}, "holds no array 'train_images'"),
        ({"test_labels": None}, "holds no array 'test_labels'"),
        ({"train_images": np.zeros((12, 5, 4))}, r"float64\(12, 5, 4\); it must be uint8"),
        ({"train_images": np.zeros((12, 5), np.uint8)}, "it must be uint8"),
        ({"test_images": np.zeros((3, 5, 5), np.uint8)}, "all must be of one size"),
        ({"train_labels": np.zeros(11, int)}, r"must be int\[12\]"),
        ({"train_labels": np.zeros(12)}, r"must be int\[12\]"),
        ({"train_labels": np.repeat([0, 1, -1], 4)}, "holds the label -1"),
        ({"train_labels": np.repeat([0, 1, 3], 4)}, "no training image in class 2"),
        ({"train_labels": np.repeat([0, 1, 10**9], 4)}, "no training image in class 2 .*from 0 to 1000000000"),
        (
            {"class_names": np.array(["a", "b"])},
            r"train_labels in .*: labels hold 2; with 2 classes they must lie in 0..1",
        ),
        ({"test_labels": np.array([0, 1, 3])}, "no training image in class 3 in .*; 1 test images have it"),
        ({"class_names": np.array([*"abcd"])}, r"no training image in class 3 \(d\); leave"),
        (
            {"class_names": np.array([*"abcd"]), "test_labels": np.array([3, 3, 1])},
            r"no training image in class 3 \(d\), but test has 2 of d; leave",
        ),
        ({"train_labels": np.zeros(12, int), "test_labels": np.zeros(3, int)}, "only one class, '0'"),
        ({"train_images": np.zeros((12, 6, 8, 9), np.uint8)}, r"6 channels in front.*numpy.moveaxis\(images, 1, -1\)"),
        ({"imbalance": 9.0}, "imbalance of 9 leaves no training image in class 2: .* smallest class, 4"),
        ({"validation_images": np.zeros((2, 5, 4), np.uint8)}, "holds no array 'validation_labels'"),
        ({"validation_labels": np.zeros(2, int)}, "holds no array 'validation_images'"),
    ],
)
def test_wrong_arrays_get_a_sentence(arrays, changes, message):
    with pytest.raises(UserError, match=message):
        arrays(**changes)


@pytest.mark.parametrize("file", ["", "absent.npz", "text"])
def test_a_file_that_is_no_npz_gets_a_sentence(tmp_path, file):
    if file == "text":
        file = str(tmp_path / "text.npz")
        (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(UserError, match=r"no data file given|cannot read absent.npz: No such|text.npz is no .npz file"):
        sources.load(ConfigDict({"source": "arrays", **CUT, "file": file}))


def test_pickled_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "p.npz", train_images=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="pickled objects, which are not loaded"):
        sources.load(ConfigDict({"source": "arrays", **CUT, "file": str(tmp_path / "p.npz")}))
