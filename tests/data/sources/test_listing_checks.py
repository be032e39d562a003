import contextlib

import numpy as np
import pytest

from unimix_jax.data.sources import (
    listing_checks,
)
from unimix_jax.data.sources.listing import Listing
from unimix_jax.errors import UserError

from .files import both, load, touch


def photos(root, names):
    """Files of different contents and one size."""
    for i, name in enumerate(names):
        touch(root, [name])
        (root / name).write_bytes(bytes([i]) * 99)


@pytest.mark.parametrize("how", ["all", "two", "link", "lists"])
def test_splits_with_the_same_contents_under_the_same_names_are_refused(tmp_path, how):
    photos(tmp_path, both("train", "test"))
    assert load(dir=tmp_path).counts.sum() == 4  # the same names alone are usual
    for name in both("train", "train")[: 2 if how == "two" else 4]:
        (tmp_path / name.replace("train", "test")).write_bytes((tmp_path / name).read_bytes())
    if how == "link":
        (tmp_path / "test").rename(tmp_path / "away")
        (tmp_path / "test").symlink_to(tmp_path / "train", target_is_directory=True)
        (tmp_path / "away").rename(tmp_path / ".away")
    lists = {}
    if how == "lists":
        for split in ("train", "test"):
            lists[f"{split}_list"] = str(tmp_path / f"{split}.txt")
            lines = [f"{split}/{c}/{i}.jpg {label}\n" for label, c in enumerate(("ant", "bee")) for i in range(2)]
            (tmp_path / f"{split}.txt").write_text("".join(lines))
    count = 2 if how == "two" else 4
    with pytest.raises(
        UserError, match=rf"{count} of the 4 test images have the same content and name as train images"
    ):
        load(dir=tmp_path, **lists)


def test_single_images_that_splits_share_are_said_and_one_in_a_hundred_is_refused(tmp_path, heard):
    photos(tmp_path, both("train", "test"))
    (tmp_path / "test/ant/0.jpg").write_bytes((tmp_path / "train/ant/0.jpg").read_bytes())
    assert load(dir=tmp_path).counts.sum() == 4
    assert (
        "1 of the 4 test images have the same content and name as train images, such as train/ant/0.jpg" in heard.text
    )
    names = {split: [f"{split}/ant/{i}.jpg" for i in range(300)] for split in ("train", "test")}
    for split, content in (("train", b"%098da"), ("test", b"%098db")):
        for i in range(1, 300):
            (tmp_path / names[split][i]).write_bytes(content % i)
    listings = {split: Listing(names[split], None, {}) for split in names}
    for i, refused in ((1, False), (2, True)):
        (tmp_path / names["test"][i]).write_bytes((tmp_path / names["train"][i]).read_bytes())
        with pytest.raises(UserError, match="3 of the 300") if refused else contextlib.nullcontext():
            listing_checks.check_contents_apart(tmp_path, listings)


def test_an_absolute_path_in_one_list_is_the_same_image(tmp_path):
    photos(tmp_path, ["a/1.jpg", "b/1.jpg"])
    (tmp_path / "train.txt").write_text("a/1.jpg 0\nb/1.jpg 1\n")
    (tmp_path / "test.txt").write_text(f"{tmp_path}/a/1.jpg 0\n")
    with pytest.raises(UserError, match=r"1 images are in both the train and the test list \(a/1.jpg\)"):
        load(dir=tmp_path, train_list="train.txt", test_list="test.txt")


def numbered(folder, **labels):
    return Listing([f"{folder}/{c}/{i}.jpg" for c in labels for i in range(3)], np.repeat([*labels.values()], 3), {})


def in_parts(folder, *classes):
    names = [f"{folder}/{c}/part{i % 2}/{i}.jpg" for c in classes for i in range(4)]
    return Listing(names, np.repeat(np.arange(len(classes)), 4), {})


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (numbered("train", ant=0, bee=1, cat=2), numbered("test", ant=2, bee=1, cat=0), "'ant' have the label 0 in"),
        (numbered("train", ant=0, bee=1), numbered("val", bee=0), "'bee' have the label 1 in .* and 0 in"),
        (
            numbered("a", x=0)._replace(names=["a/x/1", "a/x/2", "b/x/1"], labels=np.array([0, 0, 1])),
            numbered("b", x=0),
            "'b/x' have the label 1",
        ),
        (  # one image of training that was labelled otherwise does not make the folders mean nothing
            numbered("train", ant=0, bee=1, cat=2)._replace(labels=np.array([1, 0, 0, 1, 1, 1, 2, 2, 2])),
            numbered("test", ant=2, bee=1, cat=0),
            "'cat' have the label 2 in",
        ),
        (  # folders below those of the classes
            in_parts("train", "ant", "bee"),
            in_parts("test", "bee", "ant"),
            "'bee' have the label 1 in the training list and 0 in",
        ),
    ],
)
def test_lists_that_number_classes_unlike_are_refused(train, test, message):
    with pytest.raises(UserError, match=message):
        listing_checks.check_numbering({"train": train, "test": test})


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (numbered("train", ant=0, bee=1), numbered("test", ant=0, bee=1)),
        (numbered("train", ant=0, bee=1), numbered("test", all=0, more=1)),
        (numbered("train", x=0)._replace(labels=np.array([0, 1, 2])), numbered("test", x=1)),  # folders are no classes
        (numbered("", camera=0), numbered("", camera=1)),  # one folder says nothing
        (  # nearly all that a camera sees is empty
            numbered("train", here=0, there=0, fox=1),
            numbered("test", here=1, there=1),
        ),
        (  # two of many photographers have a class of their own
            numbered("train", a=0, b=1, all=2)._replace(labels=np.array([0, 0, 0, 1, 1, 1, 2, 3, 4])),
            numbered("test", a=1, b=0),
        ),
    ],
)
def test_lists_that_may_be_meant_are_taken(train, test):
    listing_checks.check_numbering({"train": train, "test": test})


def test_single_images_that_were_labelled_anew_are_said(heard):
    train, test = numbered("train", ant=0, bee=1), numbered("test", ant=0, bee=1)
    listing_checks.check_numbering({"train": train, "test": test._replace(labels=np.array([0, 0, 1, 1, 1, 1]))})
    assert "1 images of the test list have another label than the training images in folders of the same" in heard.text


def test_categories_of_other_names_are_refused():
    train, test = (numbered("all", x=0)._replace(class_names={0: name}) for name in ("Acer", "Betula"))
    with pytest.raises(UserError, match="category 0 is 'Acer' in the training list and 'Betula' in the validation"):
        listing_checks.check_numbering({"train": train, "validation": test})
