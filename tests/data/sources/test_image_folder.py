import pytest

from unimix_jax.data.sources import (
    image_folder,
)
from unimix_jax.errors import UserError

from .files import both, load, touch


def test_images_without_labels_beside_splits_are_said(tmp_path, heard):
    names = [*both("train", "val", **{"test/images": 5}), "test/readme.txt"]
    found = load(dir=touch(tmp_path, names))
    assert [name.partition("/")[0] for name in found.test.names] == ["val"] * 4
    assert "test holds 5 images and no folder for each class: they count as unlabelled" in heard.text
    touch(tmp_path, ["val_/1.jpg"])
    (tmp_path / "val").rename(tmp_path / "else")
    (tmp_path / "test" / "readme.txt").rename(tmp_path / "test" / "test_annotations.txt")
    message = r"test holds 5 images and .*test_annotations.txt in it may name them\); .* take away what has no labels"
    (tmp_path / "val_" / "1.jpg").unlink()
    with pytest.raises(UserError, match=message):
        load(dir=tmp_path)


def test_a_split_to_test_on_may_have_images_of_one_class(tmp_path):
    names = [*(f"train/{c}/{i}.jpg" for c in "ab" for i in range(3)), "val/a/8.jpg", "test/a/9.jpg", "test/b/9.jpg"]
    assert load(dir=touch(tmp_path, names)).validation.labels.tolist() == [0]
    (tmp_path / "train" / "b").rename(tmp_path / "b")
    with pytest.raises(UserError, match="train has 1 sub-folders with images; .* two at least"):
        load(dir=tmp_path)


def test_a_folder_of_splits_is_read_as_such_and_the_rest_is_said(tmp_path, heard):
    found = load(dir=touch(tmp_path, both("seg_train", "seg_test", seg_pred=5)))
    assert found.train.class_names == ("ant", "bee")
    assert [name.partition("/")[0] for name in found.train.names] == ["seg_train"] * 4
    assert [name.partition("/")[0] for name in found.test.names] == ["seg_test"] * 4
    assert "seg_train/ is for train, seg_test/ is for test" in heard.text
    assert "in no split: 5 images in seg_pred" in heard.text


def test_what_looks_like_splits_can_be_said_to_be_classes(tmp_path):
    touch(tmp_path, both("left", "right"))
    with pytest.raises(UserError, match=r"layout=classes"):
        load(dir=tmp_path)
    assert load(dir=tmp_path, layout="classes").train.class_names == ("left", "right")


def test_links_show_an_image_of_a_class_once_but_may_make_two_classes(tmp_path, heard):
    touch(tmp_path, ["a/deeper/1.jpg", "a/2.jpg", "a/3.jpg", "b/1.jpg"])
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a" / "deeper", target_is_directory=True)
    (tmp_path / "c").symlink_to(tmp_path / "b", target_is_directory=True)
    listing = image_folder.read(tmp_path)["train"]
    assert listing.names == ["a/2.jpg", "a/3.jpg", "a/again/1.jpg", "b/1.jpg", "c/1.jpg"]
    assert "a: 1 images occur twice, through links; each counts once" in heard.text
