import numpy as np
import pytest

from unimix_jax.data import longtail
from unimix_jax.errors import UserError

from .files import load


@pytest.fixture
def folder(tmp_path):
    """Return a folder of classes of 10, 4, 2 and 1 images, and one without."""
    root = tmp_path / "root"
    for name, count in {"B": 4, "a": 10, "c": 2, "d": 1, "empty": 0}.items():
        (root / name / "deeper").mkdir(parents=True)
        (root / name / "notes.txt").touch()
        for i in range(count):
            (root / name / ("deeper" if i % 2 else "") / f"{i}.JPG").touch()
    (root / ".git").mkdir()
    return root


def test_a_folder_is_split_by_class_and_its_tail_kept(folder, heard):
    found = load(dir=folder)
    assert found.train.class_names == ("B", "a", "c", "d")
    np.testing.assert_array_equal(found.counts, [2, 7, 2, 1])
    np.testing.assert_array_equal(np.bincount(found.test.labels), [1, 2])
    np.testing.assert_array_equal(np.bincount(found.validation.labels), [1, 1])
    names = [set(s.names) for s in (found.train, found.validation, found.test)]
    assert sum(map(len, names)) == len(set.union(*names)) == 17
    for source in (found.train, found.test):
        for name, label in zip(source.names, source.labels, strict=True):
            assert name.startswith(source.class_names[label] + "/")
    assert "empty (1 .txt): no class is made of it" in heard.text
    assert "2 classes have too few images to hold one out for the test: c, d" in heard.text
    assert load(dir=folder).test.names == found.test.names
    assert load(dir=folder, split_seed=1).test.names != found.test.names


def test_a_folder_with_splits_of_its_own(folder):
    inner = folder / "all"
    inner.mkdir()
    for split, name in (("train", "a"), ("Val", "B"), ("train", "B"), ("Val", "a")):
        (inner / split / name).mkdir(parents=True)
        (inner / split / name / "x.png").touch()
    found = load(dir=inner)
    assert found.train.names == ("train/B/x.png", "train/a/x.png")
    assert found.test.names == ("Val/B/x.png", "Val/a/x.png")
    assert found.validation is None


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ("", "no photographs named"),
        ("absent", "not a folder; it must hold a sub-folder for each class"),
        ("a", "has 1 sub-folders with images; it must have one for each class"),
        ("..", r"sub-folders with images.*did you mean"),
    ],
)
def test_a_folder_that_holds_no_classes_gets_a_sentence(folder, at, message):
    (folder / "a" / "deeper" / "x.jpg").touch()
    with pytest.raises(UserError, match=message):
        load(dir=folder / at if at else "")


def test_a_cut_of_a_skewed_set_is_as_large_as_its_profile_allows(folder):
    for i in range(10, 40):
        (folder / "a" / f"{i}.jpg").touch()
    found = load(dir=folder, imbalance=4.0, test_share=0.01, validation_share=0.0)
    full = np.sort(load(dir=folder, test_share=0.01, validation_share=0.0).counts)[::-1]
    cut = np.sort(found.counts)[::-1]
    np.testing.assert_array_equal(cut, longtail.profile("exp", int(cut[0]), 4, 4.0))
    assert (cut <= full).all()
    assert not (longtail.profile("exp", int(cut[0]) + 1, 4, 4.0) <= full).all()
    with pytest.raises(UserError, match="leaves no training image"):
        load(dir=folder, imbalance=1000.0)


def test_links_that_lead_back_give_no_image_twice(folder):
    before = load(dir=folder)
    (folder / "a" / "up").symlink_to(folder, target_is_directory=True)
    (folder / "a" / "deeper" / "back").symlink_to(folder / "a", target_is_directory=True)
    assert load(dir=folder).train.names == before.train.names


def test_a_test_list_alone_is_refused(lists):
    lists("test.txt", "cat/9.jpg 0\ndog/9.jpg 1\n")
    with pytest.raises(UserError, match=r"config.data.test_list goes with config.data.train_list"):
        load(dir=lists.root, test_list="test.txt")
