import collections
import contextlib
import logging
import os

import numpy as np
import pytest
from PIL import Image

from unimix_jax.data import loading, sources, types
from unimix_jax.data.sources import image_folder, photographs
from unimix_jax.errors import UserError
from unimix_jax.settings import default, use_photographs


def load(**fields):
    config = default()
    use_photographs(config)
    config.data.update({name: str(v) if hasattr(v, "is_dir") else v for name, v in fields.items()})
    return sources.load(config.data)


@pytest.fixture
def heard(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("unimix_jax"), "propagate", True)
    caplog.set_level(logging.INFO)
    return caplog


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("train", "train"),
        ("Training_Set", "train"),
        ("trainset", "train"),
        ("seg_train", "train"),
        ("train2017", "train"),
        ("trainval", "train"),
        ("train_val2018", "train"),
        ("TRAIN images", "train"),
        ("dev", "validation"),
        ("valid", "validation"),
        ("val_set", "validation"),
        ("testing-data", "test"),
        ("seg_pred", image_folder._UNUSED),
        ("unlabeled", image_folder._UNUSED),
        ("trainA", "train"),
        ("cat", ""),
        ("fold1", ""),
        ("training_test", ""),  # which of them?
    ],
)
def test_the_usual_names_of_splits(name, role):
    rest = {"cat": ("cat",), "fold1": ("fold",), "trainA": ("a",)}.get(name, ())
    assert image_folder.role(name) == (role, rest)


def both(train, test, /, classes=("ant", "bee"), **more):
    """Names of images of the same classes in two folders, and of others."""
    names = [f"{top}/{c}/{i}.jpg" for top in (train, test) for c in classes for i in range(2)]
    return [*names, *(f"{folder}/{i}.jpg" for folder, count in more.items() for i in range(count))]


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
    assert image_folder.split_folders(tmp_path, counted(names)) == found
    for folder in found.values() or [""]:
        image_folder.check_classes(tmp_path, counted(names), folder)


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
        assert image_folder.split_folders(tmp_path, counted(names)) or image_folder.check_classes(
            tmp_path, counted(names)
        )
    tops = sorted({name.partition("/")[0] for name in names})
    if len(tops) > 1:
        assert "layout=classes" in str(refused.value)
        listing = image_folder.read(touch(tmp_path, names), layout="classes")["train"]
        assert [*listing.class_names.values()] == tops
        assert len(listing.names) == len({*names})


def touch(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_images_without_labels_beside_splits_are_said(tmp_path, heard):
    names = [*both("train", "val", **{"test/images": 5}), "test/readme.txt"]
    found = load(dir=touch(tmp_path, names))
    assert [name.partition("/")[0] for name in found.test.names] == ["val"] * 4
    assert "test holds 5 images and no folder for each class: they count as unlabelled" in heard.text
    touch(tmp_path, ["val_/1.jpg"])
    (tmp_path / "val").rename(tmp_path / "else")
    (tmp_path / "test" / "readme.txt").rename(tmp_path / "test" / "test_annotations.txt")
    message = r"test holds 5 images and .*test_annotations.txt in it may say it\); .* take away what has no labels"
    (tmp_path / "val_" / "1.jpg").unlink()
    with pytest.raises(UserError, match=message):
        load(dir=tmp_path)


def test_a_split_to_test_on_may_have_images_of_one_class(tmp_path):
    names = [*(f"train/{c}/{i}.jpg" for c in "ab" for i in range(3)), "val/a/8.jpg", "test/a/9.jpg", "test/b/9.jpg"]
    assert load(dir=touch(tmp_path, names)).validation.labels.tolist() == [0]
    (tmp_path / "train" / "b").rename(tmp_path / "b")
    with pytest.raises(UserError, match="train has 1 sub-folders with images; .* two at least"):
        load(dir=tmp_path)


@pytest.mark.parametrize(("train", "test"), [("Ant", "ant"), ("caf\u00e9", "cafe\u0301")])
def test_classes_that_are_written_otherwise_in_another_split_are_refused(tmp_path, train, test):
    touch(tmp_path, [f"train/{train}/1.jpg", "train/bee/1.jpg", f"test/{test}/2.jpg", "test/bee/2.jpg"])
    with pytest.raises(UserError, match=rf"1 of the classes in .*test are written otherwise .* {test!r} and {train!r}"):
        load(dir=tmp_path)


def test_folders_that_systems_make_are_passed_over_and_counted(tmp_path, heard):
    of_systems = ("a/@eaDir", "@eaDir", "__MACOSX/a", "$RECYCLE.BIN", "System Volume Information", "lost+found", ".git")
    touch(tmp_path, [f"{c}/{i}.jpg" for c in "ab" for i in range(3)] + [f"{folder}/9.jpg" for folder in of_systems])
    assert load(dir=tmp_path).train.class_names == ("a", "b")
    assert "7 folders of systems, or with a name that begins with a dot, are passed over: 2 @eaDir" in heard.text


def test_files_that_are_never_photographs_are_no_loss(tmp_path, heard):
    beside = ("1.jpg:Zone.Identifier", "Thumbs.db:encryptable", "all.zip", "a.pdf", "a.npy", "a.mp4", "a.pth", "a.bak")
    touch(tmp_path, [f"{c}/{i}.jpg" for c in "ab" for i in range(3)] + [f"a/{name}" for name in beside])
    touch(tmp_path, ["models/a.pt", "models/b.pt", "Annotations/a.mat"])
    assert load(dir=tmp_path).train.class_names == ("a", "b")
    assert "Annotations (1 .mat), " in heard.text
    assert "models (2 .pt): no class is made of it" in heard.text
    for name in ("1.heic", "1.cr2", "1.jxl", "1.svg", "1.unknown", "1.jpg:1"):
        touch(tmp_path, [f"more/{name}"])
        with pytest.raises(UserError, match="of the class 'more' .* 0 files are images that are read and 1 are not"):
            load(dir=tmp_path)
        (tmp_path / "more" / name).unlink()


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


def test_a_split_of_files_that_are_not_read_is_not_left_out(tmp_path, heard):
    touch(tmp_path, [*(f"train/{c}/{i}.jpg" for c in ("ant", "bee") for i in range(3)), "val/readme.txt"])
    assert load(dir=tmp_path).train.class_names == ("ant", "bee")
    assert "val holds no image: no split is made of it" in heard.text
    touch(tmp_path, ["test/ant/1.heic", "test/bee/1.heic"])
    with pytest.raises(UserError, match=r"test holds no image that is read \(2 .heic\)"):
        load(dir=tmp_path)


def test_files_that_are_not_taken_are_said_by_class_suffix_and_count(tmp_path, heard):
    names = [f"{c}/{i}.jpg" for c in "ab" for i in range(10)]
    touch(tmp_path, [*names, "a/1.heic", "b/notes.txt", "b/more.txt", "b/.hidden.jpg", "b/.DS_Store"])
    assert sum(load(dir=tmp_path, test_share=0.1, validation_share=0.0).counts) == 18
    assert "4 files are passed over, for they are no images that are read: 2 .txt, 1 .heic, 1 with a name" in heard.text
    assert "class a: 10 images; passed over: 1 .heic\n" in heard.text
    assert "class b: 10 images; passed over: 2 .txt, 1 with a name that begins with a dot\n" in heard.text


def test_a_class_that_loses_a_tenth_of_its_files_stops_unless_told_to_go_on(tmp_path):
    touch(tmp_path, [f"{c}/{i}.jpg" for c in "abc" for i in range(3)])
    touch(tmp_path, [*(f"b/{i}.HEIC" for i in range(9)), *(f"c/{i}.xml" for i in range(3)), "d/1.jxl"])
    message = (
        r"of the class 'b' in .* 3 files are images that are read and 9 are not \(9 .heic\); 1 more of the classes lose"
    )
    with pytest.raises(UserError, match=message):
        load(dir=tmp_path)
    found = load(dir=tmp_path, skip_other_files=True)
    assert found.train.class_names == ("a", "b", "c")
    assert len(found.train.names) + len(found.test.names) == 9


def test_images_without_a_suffix_are_seen_by_their_content(tmp_path):
    for c, kind in enumerate(("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "JPEG2000", "PPM", "BMP", "GIF")):
        (tmp_path / f"{c % 2}").mkdir(exist_ok=True)
        Image.fromarray(np.full((9, 9, 3), 20 * c, np.uint8)).save(tmp_path / f"{c % 2}" / kind, kind)
    (tmp_path / "0" / "README").write_text("none of them")
    found = image_folder.scan(tmp_path)
    assert len(found.images) == 9
    assert found.others == [("0/README", "without a suffix that are no images", False)]
    (tmp_path / "0" / "unknown").write_bytes(b"\0\0\0\x18ftypheic")
    assert image_folder.scan(tmp_path).others[-1][2]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders here")
def test_pipes_devices_and_lost_links_are_no_images(tmp_path):
    touch(tmp_path, [f"{c}/{i}.jpg" for c in "ab" for i in range(3)])
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    (tmp_path / "a" / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "a" / "lost.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"3 are not \(3 that are no regular files\)"):
        load(dir=tmp_path)
    assert len(load(dir=tmp_path, skip_other_files=True).train.names) == 4
    # A list may name them; nobody waits for what never comes.
    reading = loading.Reading(8, 9, 0.5, False, 1, 0)
    for name in ("a/pipe.jpg", "a/zero.jpg", "a"):
        source = types.Source(np.zeros(1, np.int32), ("a",), None, None, names=(name,), root=str(tmp_path))
        with pytest.raises(UserError, match=r"cannot read the image .*it must be a regular file"):
            next(loading.blocks(source, 1, reading))
        skipping = loading.blocks(source, 1, reading._replace(skip_unreadable=True))
        assert not next(skipping)[1].any()


def test_a_file_larger_than_any_image_is_not_read(tmp_path):
    with open(tmp_path / "1.jpg", "wb") as file:
        file.truncate(2**40)  # takes no room
    with pytest.raises(OSError, match="has more than 2 GiB"):
        types.read_regular(tmp_path / "1.jpg")
    for read in (photographs.read_list, photographs.read_json):
        with pytest.raises(OSError, match="must be a regular file"):
            read(os.devnull)


def test_a_line_break_in_a_name_is_refused(tmp_path):
    touch(tmp_path, ["a/1.jpg", "b/1.jpg", "b/1\n2.jpg"])
    with pytest.raises(UserError, match=r"holds a line break, such as 'b/1\\n2.jpg'"):
        load(dir=tmp_path)


def test_links_show_an_image_of_a_class_once_but_may_make_two_classes(tmp_path, heard):
    touch(tmp_path, ["a/deeper/1.jpg", "a/2.jpg", "a/3.jpg", "b/1.jpg"])
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a" / "deeper", target_is_directory=True)
    (tmp_path / "c").symlink_to(tmp_path / "b", target_is_directory=True)
    listing = image_folder.read(tmp_path)["train"]
    assert listing.names == ["a/2.jpg", "a/3.jpg", "a/again/1.jpg", "b/1.jpg", "c/1.jpg"]
    assert "a: 1 images are there twice, by links; each counts once" in heard.text


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
    listings = {split: image_folder.Listing(names[split], None, {}) for split in names}
    for i, refused in ((1, False), (2, True)):
        (tmp_path / names["test"][i]).write_bytes((tmp_path / names["train"][i]).read_bytes())
        with pytest.raises(UserError, match="3 of the 300") if refused else contextlib.nullcontext():
            photographs._check_contents_apart(tmp_path, listings)


def test_an_absolute_path_in_one_list_is_the_same_image(tmp_path):
    photos(tmp_path, ["a/1.jpg", "b/1.jpg"])
    (tmp_path / "train.txt").write_text("a/1.jpg 0\nb/1.jpg 1\n")
    (tmp_path / "test.txt").write_text(f"{tmp_path}/a/1.jpg 0\n")
    with pytest.raises(UserError, match=r"1 images are in both the train and the test list \(a/1.jpg\)"):
        load(dir=tmp_path, train_list="train.txt", test_list="test.txt")


def numbered(folder, **labels):
    return image_folder.Listing(
        [f"{folder}/{c}/{i}.jpg" for c in labels for i in range(3)], np.repeat([*labels.values()], 3), {}
    )


def in_parts(folder, *classes):
    names = [f"{folder}/{c}/part{i % 2}/{i}.jpg" for c in classes for i in range(4)]
    return image_folder.Listing(names, np.repeat(np.arange(len(classes)), 4), {})


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
        photographs._check_numbering({"train": train, "test": test})


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
    photographs._check_numbering({"train": train, "test": test})


def test_single_images_that_were_labelled_anew_are_said(heard):
    train, test = numbered("train", ant=0, bee=1), numbered("test", ant=0, bee=1)
    photographs._check_numbering({"train": train, "test": test._replace(labels=np.array([0, 0, 1, 1, 1, 1]))})
    assert "1 images of the test list have another label than the training images in folders of the same" in heard.text


def test_categories_of_other_names_are_refused():
    train, test = (numbered("all", x=0)._replace(class_names={0: name}) for name in ("Acer", "Betula"))
    with pytest.raises(UserError, match="category 0 is 'Acer' in the training list and 'Betula' in the validation"):
        photographs._check_numbering({"train": train, "validation": test})


def test_listed_files_of_a_format_that_is_not_read_are_refused(tmp_path):
    touch(tmp_path, ["a/1.jpg", "b/1.heic", "b/2.heic"])
    Image.new("RGB", (9, 9)).save(tmp_path / "a" / "1.jpg_large", "JPEG")
    (tmp_path / "train.txt").write_text("a/1.jpg 0\na/1.jpg_large 0\nb/1.heic 1\nb/2.heic 1\n")
    with pytest.raises(UserError, match=r"2 of the 4 listed files end in .heic and are no images .*, such as b/1.heic"):
        load(dir=tmp_path, train_list="train.txt")
