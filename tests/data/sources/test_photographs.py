import json
import logging

import numpy as np
import pytest

from unimix_jax import priors
from unimix_jax.data import sources, types
from unimix_jax.data.sources import photographs
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


@pytest.fixture
def lists(tmp_path):
    """Return write(name, text or bytes): a list file beside an image root; the images it names are made, empty."""

    root = tmp_path / "root"
    root.mkdir()

    def write(name, text, missing=()):
        data = text.encode() if isinstance(text, str) else text
        (root / name).write_bytes(data)
        for line in data.decode("utf-8", "surrogateescape").replace("\ufeff", "").replace("\r\n", "\n").split("\n"):
            image = line.rpartition(" ")[0]
            if image and image not in missing:
                (root / image).parent.mkdir(parents=True, exist_ok=True)
                (root / image).touch()
        return name

    write.root = root
    return write


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
    assert photographs.read_list(path).names[0] == "caf\udce9.jpg"


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


def test_an_image_listed_twice_counts_once_aloud(lists, heard):
    assert both(lists, TRAIN + "cat/1.jpg 0\n").train.names == ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg")
    assert "lists 1 images more than once" in heard.text


def test_labels_with_gaps_are_numbered_anew_aloud(lists, heard):
    found = both(lists, "a/1.jpg 2\nb/1.jpg 7\nb/2.jpg 7\n", "a/9.jpg 2\nb/9.jpg 7\n")
    np.testing.assert_array_equal(found.train.labels, [0, 1, 1])
    np.testing.assert_array_equal(found.test.labels, [0, 1])
    assert found.train.class_names == ("a", "b")
    assert "no image has the label 0, 1, 3, ...: the 2 others are numbered anew" in heard.text


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
        photographs.check_files(lists.root, names)


@pytest.mark.parametrize("root", ["below", "above"])
def test_an_image_root_one_level_off_is_found_aloud(lists, heard, root):
    lists("train.txt", TRAIN)
    lists("test.txt", TEST)
    (lists.root / "deep").mkdir()
    given = lists.root.parent if root == "below" else lists.root / "deep"
    lists_at = {s: str(lists.root / f"{s}.txt") for s in ("train", "test")}
    found = load(dir=given, train_list=lists_at["train"], test_list=lists_at["test"])
    assert found.train.root == str(lists.root)
    assert f"not under {given} but under {lists.root}" in heard.text


def test_an_absent_list_gets_a_sentence(tmp_path):
    with pytest.raises(UserError, match="config.data.train_list names absent.txt, which is neither there nor in"):
        load(dir=tmp_path, train_list="absent.txt")


INAT = {
    "images": [{"id": i, "file_name": f"train_val2018/{c}/{i}.jpg"} for i, c in enumerate("aab")],
    "annotations": [{"id": 9, "image_id": i, "category_id": c} for i, c in enumerate([4, 4, 6])],
    "categories": [{"id": 4, "name": "Acer"}, {"id": 5, "name": "Betula"}, {"id": 6, "name": "Corylus"}],
}


def test_inaturalists_json(lists):
    (lists.root / "train.json").write_text(json.dumps(INAT))
    lists("test.txt", "train_val2018/a/8.jpg 4\ntrain_val2018/b/9.jpg 6\n")
    for image in INAT["images"]:
        (lists.root / image["file_name"]).touch()
    found = load(dir=lists.root, train_list="train.json", test_list="test.txt")
    assert found.train.class_names == ("Acer", "Corylus")
    np.testing.assert_array_equal(found.train.labels, [0, 0, 1])
    (lists.root / "train.json").write_text(json.dumps({"images": []}))
    with pytest.raises(UserError, match=r"no JSON like iNaturalist's.*KeyError: 'annotations'"):
        load(dir=lists.root, train_list="train.json")


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
        ("absent", "no folder; it must hold a sub-folder for each class"),
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
    np.testing.assert_array_equal(cut, priors.profile("exp", int(cut[0]), 4, 4.0))
    assert (cut <= full).all()
    assert not (priors.profile("exp", int(cut[0]) + 1, 4, 4.0) <= full).all()
    with pytest.raises(UserError, match="leaves no training image"):
        load(dir=folder, imbalance=1000.0)


def test_stratified_splits_share_nothing_and_keep_the_shares():
    labels = np.repeat(np.arange(4), [1000, 100, 5, 1])
    at = types.stratified(labels, 4, {"test": 0.2, "validation": 0.1}, seed=3)
    np.testing.assert_array_equal(np.sort(np.concatenate(list(at.values()))), np.arange(len(labels)))
    np.testing.assert_array_equal(np.bincount(labels[at["test"]]), [200, 20, 1])
    np.testing.assert_array_equal(np.bincount(labels[at["validation"]]), [100, 10, 1])


def test_digests_tell_names_and_labels(folder):
    source = load(dir=folder).train
    assert types.digest(source) == types.digest(source._replace(root="elsewhere"))
    assert types.digest(source) != types.digest(source.take(np.arange(len(source.labels))[::-1]))


def test_links_that_lead_back_give_no_image_twice(folder):
    before = load(dir=folder)
    (folder / "a" / "up").symlink_to(folder, target_is_directory=True)
    (folder / "a" / "deeper" / "back").symlink_to(folder / "a", target_is_directory=True)
    assert load(dir=folder).train.names == before.train.names


def test_a_test_list_alone_is_refused(lists):
    lists("test.txt", TEST)
    with pytest.raises(UserError, match=r"config.data.test_list goes with config.data.train_list"):
        load(dir=lists.root, test_list="test.txt")


@pytest.mark.parametrize("category", [-1, 10**11])
def test_categories_that_are_no_classes_are_refused(lists, category):
    content = {**INAT, "annotations": [{"id": 9, "image_id": 0, "category_id": category}]}
    (lists.root / "train.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"holds the label {category}"):
        load(dir=lists.root, train_list="train.json")


IMAGES, NOTES = [{"id": 0, "file_name": "a/0.jpg"}], [{"image_id": 0, "category_id": 1}]


@pytest.mark.parametrize(
    "text",
    [
        "5",
        "[1]",
        "{}",
        "[" * 100_000,
        '{"images": ' + "[" * 100_000,
        '{"images": 1, "annotations": 2}',
        json.dumps({"images": IMAGES, "annotations": NOTES}).replace("1}", "1e999}"),
        json.dumps({"images": IMAGES, "annotations": NOTES}).replace("1}", "NaN}"),
        json.dumps({"images": IMAGES, "annotations": NOTES}).replace("1}", "9" * 5000 + "}"),
        *(
            json.dumps({"images": IMAGES, "annotations": [{"image_id": 0, "category_id": label}]})
            for label in (True, None, 1.5, "x", [], {}, -1, 2**70, -(2**70), 10**4000)
        ),
        *(
            json.dumps({"images": [{"id": 0, "file_name": name}], "annotations": NOTES})
            for name in ("a\0.jpg", "a\n.jpg", "a\r.jpg", "\ud800.jpg", 5, None, ["a"])
        ),
        json.dumps({"images": IMAGES, "annotations": NOTES, "categories": [{"id": 1, "name": "\ud800"}]}),
        json.dumps({"images": IMAGES, "annotations": NOTES, "categories": [5]}),
        json.dumps({"images": IMAGES * 2, "annotations": NOTES}),
        json.dumps({"images": IMAGES, "annotations": NOTES, "categories": [{"id": 1}, {"id": 1}]}),
        json.dumps({"images": [{"id": [], "file_name": "a"}], "annotations": NOTES}),
        b"\xff\xfe",
        b"",
    ],
)
def test_json_of_any_content_gets_a_sentence(tmp_path, text):
    path = tmp_path / "train.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        photographs.read_json(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize(
    "line", [b"a\0.jpg 0", b"a\rb.jpg 0", b"a.jpg 99999999", b"a.jpg 1e9", b"a.jpg " + b"9" * 5000, b"\0"]
)
def test_lines_of_any_content_get_a_sentence(tmp_path, line):
    (tmp_path / "train.txt").write_bytes(b"b.jpg 1\n" + line)
    with pytest.raises(UserError) as caught:
        photographs.read_list(tmp_path / "train.txt")
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
