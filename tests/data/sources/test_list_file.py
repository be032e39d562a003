import json
import os

import numpy as np
import pytest
from PIL import Image

from unimix_jax.config import default, use_photographs
from unimix_jax.data import sources
from unimix_jax.data.sources import inaturalist, list_file
from unimix_jax.errors import UserError

from .files import load, touch
from .test_inaturalist import INAT

TRAIN, TEST = "cat/1.jpg 0\ncat/2.jpg 0\ndog/1.jpg 1\n", "cat/9.jpg 0\ndog/9.jpg 1\n"


def both(lists, train=TRAIN, test=TEST, **fields):
    lists("train.txt", train, **fields)
    lists("test.txt", test)
    return load(dir=lists.root, train_list="train.txt", test_list="test.txt")


def test_list_files_give_paths_labels_and_names_of_classes(lists):
    found = both(lists)
    assert found.train.names == ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg")
    np.testing.assert_array_equal(found.train.labels, [0, 0, 1])
    assert found.train.class_names == ("cat", "dog")
    assert found.validation is None
    assert found.test.root == str(lists.root)
    np.testing.assert_array_equal(found.counts, [2, 1])
    np.testing.assert_allclose(found.train.mean, [0.485, 0.456, 0.406])


@pytest.mark.parametrize(
    ("train", "names"),
    [
        (TRAIN.replace("\n", "\r\n"), ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg")),
        ("\ufeff" + TRAIN + "\n\n", ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg")),
        ("a b/x y.jpg 0\nc/z.jpg 1", ("a b/x y.jpg", "c/z.jpg")),
        ("größe/ü 1.jpg 0\n日本/一.jpg 1", ("größe/ü 1.jpg", "日本/一.jpg")),
        ("./a/1.jpg 0\nb//2.jpg 1", ("a/1.jpg", "b/2.jpg")),
        ("a/1.jpg 0\nb/\u20282.jpg 1", ("a/1.jpg", "b/\u20282.jpg")),  # a line separator in a name ends no line
    ],
)
def test_list_files_of_many_hands(lists, train, names):
    assert both(lists, train).train.names == names


def test_a_name_that_is_no_utf8_is_a_name(lists, tmp_path):
    path = tmp_path / "l.txt"
    path.write_bytes(b"caf\xe9.jpg 0\nb.jpg 1\n")
    assert list_file.read(path).names[0] == "caf\udce9.jpg"


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("a/1.jpg 0\na/2.jpg\n", r"line 2 of .*train.txt is 'a/2.jpg'; each line must be a path, a space and a label"),
        ("a/1.jpg 0\na/2.jpg -1\n", "line 2 of"),
        ("a/1.jpg 0\na/2.jpg one\n", "line 2 of"),
        ("a/1.jpg 0\na/1.jpg 1\n", "gives the image a/1.jpg two labels, 0 and 1"),
        ("\n", "lists no image"),
        ("cat/9.jpg 0\nb/1.jpg 1\n", r"1 images are in both the train and the test list \(cat/9.jpg\)"),
    ],
)
def test_wrong_lists_get_a_sentence(lists, train, message):
    with pytest.raises(UserError, match=message):
        both(lists, train)


def test_an_image_listed_twice_counts_once_with_a_warning(lists, heard):
    assert both(lists, TRAIN + "cat/1.jpg 0\n").train.names == ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg")
    assert "lists 1 images more than once" in heard.text


def test_labels_with_gaps_are_numbered_anew_with_a_warning(lists, heard):
    found = both(lists, "a/1.jpg 2\nb/1.jpg 7\nb/2.jpg 7\n", "a/9.jpg 2\nb/9.jpg 7\n")
    np.testing.assert_array_equal(found.train.labels, [0, 1, 1])
    np.testing.assert_array_equal(found.test.labels, [0, 1])
    assert found.train.class_names == ("a", "b")
    assert "no image has the label 0, 1, 3, ...: the 2 others are renumbered" in heard.text


def test_classes_without_folders_of_their_own_are_called_by_their_labels(lists):
    assert both(lists, "x/1.jpg 3\nx/2.jpg 5\n", "x/9.jpg 3\n").train.class_names == ("3", "5")


def test_a_class_that_is_only_tested_is_refused(lists):
    with pytest.raises(UserError, match=r"no training image in class 1 \(1\)"):
        both(lists, "a/1.jpg 0\nc/1.jpg 2\n", "b/1.jpg 1\n")


def test_missing_images_are_counted_before_training(lists):
    with pytest.raises(UserError, match=r"2 of 5 listed files are not under .*, such as cat/2.jpg, dog/1.jpg; name"):
        both(lists, missing=("cat/2.jpg", "dog/1.jpg"))
    names = [f"train/n01440764/n01440764_{i}.JPEG" for i in range(3)]
    with pytest.raises(UserError, match="ImageNet-LT name the files of ILSVRC 2012"):
        list_file.check_existence(lists.root, names)


@pytest.mark.parametrize("root", ["below", "above"])
def test_an_image_root_one_level_off_is_found_with_a_warning(lists, heard, root):
    lists("train.txt", TRAIN)
    lists("test.txt", TEST)
    (lists.root / "deep").mkdir()
    given = lists.root.parent if root == "below" else lists.root / "deep"
    lists_at = {s: str(lists.root / f"{s}.txt") for s in ("train", "test")}
    found = load(dir=given, train_list=lists_at["train"], test_list=lists_at["test"])
    assert found.train.root == str(lists.root)
    assert f"not under {given} but under {lists.root}" in heard.text


def test_an_absent_list_gets_a_sentence(tmp_path):
    with pytest.raises(UserError, match="config.data.train_list names absent.txt, which exists neither there nor in"):
        load(dir=tmp_path, train_list="absent.txt")


@pytest.mark.parametrize(
    "line", [b"a\0.jpg 0", b"a\rb.jpg 0", b"a.jpg 99999999", b"a.jpg 1e9", b"a.jpg " + b"9" * 5000, b"\0"]
)
def test_lines_of_any_content_get_a_sentence(tmp_path, line):
    (tmp_path / "train.txt").write_bytes(b"b.jpg 1\n" + line)
    with pytest.raises(UserError) as caught:
        list_file.read(tmp_path / "train.txt")
    assert len(str(caught.value)) < 400


def test_damaged_lists_give_sentences_or_lists(tmp_path):
    random = np.random.default_rng(0)
    lists = {"list.json": json.dumps(INAT).encode(), "list.txt": TRAIN.encode()}
    pieces = [
        b"\0",
        b"\xff",
        b"1e999",
        b"true",
        b"null",
        b"[" * 2000,
        b"-1",
        b"\\ud800",
        b"9" * 30,
        b'"',
        b"{",
        b"..",
        b"/",
    ]
    config, done = default(), 0
    use_photographs(config)
    config.data.dir = str(tmp_path)
    for name, good in lists.items():
        config.data.train_list = config.data.test_list = name
        for _ in range(200):
            data = bytearray(good)
            for _ in range(random.integers(1, 4)):
                at = int(random.integers(len(data)))
                data[at : at + int(random.integers(0, 6))] = pieces[random.integers(len(pieces))]
            (tmp_path / name).write_bytes(data)
            try:
                sources.load(config.data)
            except (UserError, OSError):
                done += 1
    assert done == 400  # the same list twice is refused at the latest


def test_listed_files_of_a_format_that_is_not_read_are_refused(tmp_path):
    touch(tmp_path, ["a/1.jpg", "b/1.heic", "b/2.heic"])
    Image.new("RGB", (9, 9)).save(tmp_path / "a" / "1.jpg_large", "JPEG")
    (tmp_path / "train.txt").write_text("a/1.jpg 0\na/1.jpg_large 0\nb/1.heic 1\nb/2.heic 1\n")
    with pytest.raises(
        UserError, match=r"2 of the 4 listed files end in .heic and are not images .*, such as b/1.heic"
    ):
        load(dir=tmp_path, train_list="train.txt")


def test_a_device_is_no_list():
    for read in (list_file.read, inaturalist.read):
        with pytest.raises(OSError, match="must be a regular file"):
            read(os.devnull)
