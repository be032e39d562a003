import collections

import pytest

from unimix_jax.data.sources import (
    folder_layout,
    image_folder,
)
from unimix_jax.errors import UserError

from .files import both, touch


def counted(names):
    return collections.Counter(name.rpartition("/")[0] for name in names)


SPLITS = {"train": "train", "validation": "val", "test": "test"}


TEST = {"training_set": "test_set", "seg_train": "seg_test", "trainval": "test", "train_2": "test_2", "TRAIN": "Test"}


@pytest.mark.parametrize(
    ("names", "found"),
    [
        *((both(train, test), {"train": train, "test": test}) for train, test in TEST.items()),
        (both("dogs_train", "dogs_test"), {"train": "dogs_train", "test": "dogs_test"}),
        (both("train", "dev"), {"train": "train", "validation": "dev"}),
        (both("train", "test", unlabelled=3), {"train": "train", "test": "test"}),
        (both("train/train", "test/test"), {"train": "train/train", "test": "test/test"}),
        (["train/ant/1.jpg", "train/bee/1.jpg", "unlabelled/1.jpg"], {"train": "train"}),
        (["train/ant/1.jpg", "train/bee/1.jpg"], {"train": "train"}),
        (["train/1.jpg", "car/1.jpg"], {}),  # a class that is called so
        (["train/images/1.jpg", "car/images/1.jpg"], {}),
        (both("ant", "bee", classes=("images",)), {}),
        (["1.jpg", "ant/1.jpg"], {}),
        (both("train/images", "val/images"), {"train": "train/images", "validation": "val/images"}),
        (both("train_mini", "val"), {"train": "train_mini", "validation": "val"}),
        (both("mini_train", "train") + both("val", "val"), {"train": "train", "validation": "val"}),
        (both("train", "val", test=4), {"train": "train", "validation": "val"}),
        (both("train", "val", **{"test/images": 4}), {"train": "train", "validation": "val"}),
        (both("x_train", "x_val", **{"x_test/x_test": 4}), {"train": "x_train", "validation": "x_val"}),
        (both("train", "test", val=4), {"train": "train", "test": "test"}),
        ([*both("train", "val", classes=("raw", "cooked")), "test/raw/1.jpg"], SPLITS),
        (["train/ant/images/1.jpg", "train/bee/images/1.jpg"], {"train": "train"}),
        (["ant/images/1.jpg", "ant/images/2.jpg", "bee/images/1.jpg"], {}),
    ],
)
def test_splits_are_seen_by_names_and_contents(tmp_path, names, found):
    assert folder_layout.split_folders(tmp_path, counted(names)) == found
    for folder in found.values() or [""]:
        folder_layout.check_classes(tmp_path, counted(names), folder)


REFUSED = [
    (
        both("fold1", "fold2"),
        r"fold1, fold2 of .* hold folders of the same names \(ant, bee\).*train/, val/ and test/",
    ),
    (both("ant", "bee", classes=("train", "test")), r"splits inside of its sub-folders \(ant/test, in 2 of them\)"),
    (both("x", "x", more=3), r"some hold images \(more\) and some only folders of images \(x: x/ant, x/bee\)"),
    (both("train", "training"), "several folders for one split, train/ and training/; keep one"),
    (both("train", "my_test"), "train holds folders of images.*my_test beside it are not called as"),
    (
        [*both("train", "train"), "test/1.jpg", "test/2.jpg", "test/3.jpg"],
        r"test holds 3 images and no folder for each class.*test_list",
    ),
    (["train/1.jpg", "test/1.jpg"], "train holds 1 images and no folder for each class"),
    (both("test", "val"), "folders for test and validation .* and none for training"),
    ([*both("fold1", "fold2"), "fold1/stray.jpg", *(f"fold1/ant/{i}.png" for i in range(9))], "of the same names"),
    (  # Office-31: domains, each with the same classes
        both("amazon/images", "dslr/images"),
        r"amazon, dslr of .* hold folders of the same names \(ant, bee\).*dir=.*/amazon/images, or",
    ),
    (["fold1/cat/1.jpg", "fold1/dog/1.jpg", "fold2/cat/2.jpg", "fold2/owl/2.jpg"], r"of the same names \(cat\)"),
    (["part1/cat/1.jpg", "part2/cat/2.jpg"], r"of the same names \(cat\)"),
    ([f"{top}{x}/1.jpg" for top in ("train", "test") for x in "AB"], "trainA holds 1 images and no folder for each"),
    ([f"{top}/1.jpg" for top in ("training", "evaluation", "learning")], "several folders for one split"),
    ([f"{top}/1.jpg" for top in ("train", "test", "car")], "train holds 1 images and no folder for each class"),
    (both("train", "train", **{"val/images": 3, "test/images": 2}), "val holds 3 images .* each class, nor has test"),
]


@pytest.mark.parametrize(("names", "message"), REFUSED)
def test_sub_folders_that_cannot_be_meant_are_refused_unless_said_to_be_classes(tmp_path, names, message):
    with pytest.raises(UserError, match=message) as refused:
        assert folder_layout.split_folders(tmp_path, counted(names)) or folder_layout.check_classes(
            tmp_path, counted(names)
        )
    tops = sorted({name.partition("/")[0] for name in names})
    if len(tops) > 1:
        assert "layout=classes" in str(refused.value)
        listing = image_folder.read(touch(tmp_path, names), layout="classes")["train"]
        assert [*listing.class_names.values()] == tops
        assert len(listing.names) == len({*names})
