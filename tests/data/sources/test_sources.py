import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from unimix_jax.config import default, use_photographs
from unimix_jax.data import sources
from unimix_jax.data.types import Source, Splits
from unimix_jax.errors import UserError


def test_lists_of_one_class_and_classes_that_are_only_tested_are_refused(tmp_path):
    config = default()
    use_photographs(config)
    for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg", "c/1.jpg", "c/2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    config.data.update({"dir": str(tmp_path), "train_list": "train.txt", "test_list": "test.txt"})
    (tmp_path / "train.txt").write_text("a/1.jpg 0\n")
    (tmp_path / "test.txt").write_text("a/2.jpg 0\n")
    with pytest.raises(UserError, match="the data has only one class, 'a'"):
        sources.load(config.data)
    (tmp_path / "train.txt").write_text("a/1.jpg 0\nb/1.jpg 1\n")
    (tmp_path / "test.txt").write_text("a/2.jpg 0\nc/1.jpg 2\nc/2.jpg 2\n")
    with pytest.raises(UserError, match=r"no training image in class 2 \(2\), but test has 2 of 2; leave"):
        sources.load(config.data)


def test_an_unknown_source_is_refused():
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        sources.load(ConfigDict({"source": "cifar-10"}))


def test_a_config_without_a_field_that_its_source_reads_is_refused():
    with pytest.raises(UserError, match="config.data has no field 'file', which the source 'arrays' reads"):
        sources.load(ConfigDict({"source": "arrays"}))


IMAGES, LABELS = np.zeros((6, 4, 5, 1), np.uint8), np.array([0, 1, 2, 0, 1, 2], np.int32)
SPLIT = Source(LABELS, ("a", "b", "c"), np.float32([0.5]), np.float32([0.2]), IMAGES)
returned = None  # by `mine`


def mine(data):
    return returned


def read(monkeypatch, splits):
    monkeypatch.setattr(sys.modules[__name__], "returned", splits)
    config = default()
    config.data.source = f"{__name__}:mine"
    return sources.load(config.data)


def test_a_source_of_the_user_s_is_read_as_it_is(monkeypatch):
    splits = Splits(SPLIT, None, SPLIT)
    assert read(monkeypatch, splits) is splits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": IMAGES / np.float32(255)}, r"returns images of train that are float32 \[6, 4, 5, 1\]; .* uint8 \["),
        ({"images": IMAGES[..., 0]}, r"images of train that are uint8 \[6, 4, 5\]; it must return uint8 \[N, H, W, C"),
        ({"images": IMAGES[:5]}, "returns 5 images and 6 labels for train; it must return as many of each"),
        ({"images": None}, "neither images nor names for train"),
        ({"names": ("x",) * 6}, "both images and names for train"),
        ({"labels": LABELS + 1}, r"labels 1..3 for train; it must return labels in 0..2, for it names 3 classes"),
        ({"labels": LABELS - 1}, "labels -1..1 for train"),
        ({"labels": LABELS.astype(float)}, r"labels of train that are float64 \[6\]; it must return integers \[N\]"),
        ({"labels": LABELS.tolist()}, "labels of train that are list"),
        ({"labels": LABELS[:0], "images": IMAGES[:0]}, "no image for train"),
        ({"class_names": (1, 2, 3)}, "class names of train that are no tuple of texts"),
        ({"mean": np.float32([0.5, 0.5, 0.5])}, r"\[0.5, 0.5, 0.5\] as mean of train; .* each of 1 channels"),
        ({"mean": np.float32([np.nan])}, r"\[nan\] as mean of train; it must return a finite number"),
        ({"std": np.float32([0])}, r"\[0.0\] as std of train; it must return numbers above 0"),
    ],
)
def test_a_source_that_returns_what_cannot_be_trained_on_gets_a_sentence(monkeypatch, changes, message):
    with pytest.raises(UserError, match=message):
        read(monkeypatch, Splits(SPLIT._replace(**changes), None, SPLIT))


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (None, "returns NoneType; it must return unimix_jax.data.types.Splits"),
        (Splits(SPLIT, None, None), "returns NoneType as test; it must return unimix_jax.data.types.Source"),
        (Splits(SPLIT, SPLIT._replace(std=np.float32([-1])), SPLIT), "as std of validation"),
        (
            Splits(SPLIT, None, SPLIT._replace(images=IMAGES[:, 1:])),
            r"images \(3, 5, 1\) for test and images \(4, 5, 1",
        ),
        (Splits(SPLIT, None, SPLIT._replace(class_names=("a", "b", "d"))), "other class names for test than for train"),
    ],
)
def test_splits_of_a_source_go_together(monkeypatch, splits, message):
    with pytest.raises(UserError, match=message):
        read(monkeypatch, splits)
