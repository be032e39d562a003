import io
import os
import pickle
import struct
import tracemalloc
from typing import ClassVar

import numpy as np
import pytest
from ml_collections import ConfigDict

from unimix_jax.data import pickles, readers, sources
from unimix_jax.data.sources import cifar
from unimix_jax.errors import UserError

RANDOM = np.random.default_rng(0)


def rows_and_labels(count, classes):
    return RANDOM.integers(1, 256, (count, 3072), np.uint8), np.arange(count) % classes


class Python2Pickler(pickle._Pickler):
    """Writes byte strings as Python 2 did, and as the official files have them."""

    def save_string(self, value):
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)

    dispatch: ClassVar = {**pickle._Pickler.dispatch, bytes: save_string}


def pickled(content):
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(content)
    return buffer.getvalue()


def write_python(root, name, train, test, names):
    layout = cifar.LAYOUTS[name]
    folder = root / layout.python
    folder.mkdir()
    files, test_file, meta = layout.python_files
    for file, rows, labels in zip(files, np.split(train[0], len(files)), np.split(train[1], len(files)), strict=True):
        content = {b"data": rows, layout.label_key: labels.tolist()}
        (folder / file).write_bytes(pickled(content))
    (folder / test_file).write_bytes(pickled({b"data": test[0], layout.label_key: test[1].tolist()}))
    (folder / meta).write_bytes(pickled({layout.names_key: [n.encode() for n in names]}))
    return folder


def write_binary(root, name, train, test, names):
    layout = cifar.LAYOUTS[name]
    folder = root / layout.binary
    folder.mkdir()
    files, test_file, meta = layout.binary_files
    parts = zip(files, np.split(train[0], len(files)), np.split(train[1], len(files)), strict=True)
    for file, rows, labels in [*parts, (test_file, *test)]:
        coarse = np.full((len(rows), layout.label_bytes - 1), 7, np.uint8)
        np.concatenate([coarse, labels[:, None].astype(np.uint8), rows], axis=1).tofile(folder / file)
    (folder / meta).write_text("\n".join(names) + "\n\n")
    return folder


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("write", [write_python, write_binary])
def test_both_versions_come_back_as_written(tmp_path, name, write):
    classes = cifar.LAYOUTS[name].classes
    train, test = rows_and_labels(classes * 5, classes), rows_and_labels(classes, classes)
    names = tuple(f"class-{c}" for c in range(classes))
    write(tmp_path, name, train, test, names)
    read_train, read_test, read_names = cifar.read_rows(name, str(tmp_path))
    for read, written in ((read_train, train), (read_test, test)):
        np.testing.assert_array_equal(read[0], written[0])
        np.testing.assert_array_equal(read[1], written[1])
    assert read_names == names
    folder = next(tmp_path.iterdir())
    assert cifar.read_rows(name, str(folder))[2] == names  # the official folder itself may be named


def test_rows_are_three_planes():
    rows = RANDOM.integers(0, 256, (2, 3072), np.uint8)
    images = cifar.to_images(rows)
    assert images[1, 2, 5, 0] == rows[1, 2 * 32 + 5]
    assert images[1, 2, 5, 2] == rows[1, 2048 + 2 * 32 + 5]


def test_missing_files_are_told_in_one_sentence(tmp_path):
    with pytest.raises(UserError) as error:
        cifar.read_rows("cifar10", str(tmp_path))
    for part in (str(tmp_path), "cifar-10-batches-py", cifar.PAGE, "--config.data.dir", "--config.data.download"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def damage(folder, what):
    file = folder / "data_batch_2"
    if what == "missing":
        file.unlink()
    elif what == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    elif what == "evil":
        file.write_bytes(pickled(Evil()))
    elif what == "list":
        file.write_bytes(pickled([1, 2]))
    elif what == "labels":
        file.write_bytes(pickled({b"data": np.ones((2, 3072), np.uint8), b"labels": [3, 10]}))
    elif what == "shape":
        file.write_bytes(pickled({b"data": np.ones((2, 100), np.uint8), b"labels": [3, 1]}))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", "lacks the file data_batch_2"),
        ("cut", "cannot be read as a CIFAR file"),
        ("evil", r"asks for '(posix|nt)\.mkdir', which no CIFAR file needs; get it again, or the binary version"),
        ("list", "holds no dict"),
        ("labels", r"outside of 0\.\.9"),
        ("shape", "not rows of 3072 bytes"),
    ],
)
def test_damaged_files_get_a_sentence_and_run_no_code(tmp_path, monkeypatch, what, message):
    monkeypatch.chdir(tmp_path)
    names = [str(c) for c in range(10)]
    damage(write_python(tmp_path, "cifar10", rows_and_labels(50, 10), rows_and_labels(10, 10), names), what)
    with pytest.raises(UserError, match=message):
        cifar.read_rows("cifar10", str(tmp_path))
    assert not (tmp_path / "pwned").exists()


def test_a_torn_binary_file_gets_a_sentence(tmp_path):
    folder = write_binary(tmp_path, "cifar10", rows_and_labels(50, 10), rows_and_labels(10, 10), "abcdefghij")
    with open(folder / "test_batch.bin", "ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="not a multiple of 3073"):
        cifar.read_rows("cifar10", str(tmp_path))


def raw(*pieces):
    """A pickle of these opcodes, protocol 2."""
    return b"\x80\2" + b"".join(pieces) + b"."


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
ARRAY = RECONSTRUCT + b"cnumpy\nndarray\nK\0\x85U\1b\x87R"


def forged(
    dtype=b"cnumpy\ndtype\nU\2u1K\0K\1\x87R", dtype_state=b"(K\3U\1|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb", **at
):
    """A CIFAR file whose array has another type, shape or content."""
    shape, content = at.get("shape", b"K\1M\0\x0c\x86"), at.get("content", b"T\0\x0c\0\0" + bytes(3072))
    state = b"(K\1" + shape + dtype + dtype_state + b"\x89" + content + b"tb"
    return raw(b"}(U\4data", ARRAY, state, b"U\6labels](K\3eu")


def test_a_pickle_written_opcode_by_opcode_is_read():
    found = pickles.loads(forged())
    assert found[b"labels"] == [3]
    np.testing.assert_array_equal(found[b"data"], np.zeros((1, 3072), np.uint8))


@pytest.mark.parametrize(
    "data",
    [
        # A state that pickle gives to numpy.dtype makes it read and write anywhere.
        forged(dtype_state=b"(K\3U\1|NNNM\xff\x7fJ\xff\xff\xff\xffK\0tb"),
        forged(dtype_state=b"(K\3U\1|U\1xNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb"),
        forged(dtype=b"cnumpy\ndtype\nU\2O8K\0K\1\x87R", content=b"T\0\x0c\0\0" + b"A" * 3072),
        forged(dtype=b"cnumpy\ndtype\nU\3V99K\0K\1\x87R"),
        forged(dtype=b"cnumpy\ndtype\nU\2f8K\0K\1\x87R"),
        forged(shape=b"M\xff\xffM\xff\xff\x86"),
        forged(shape=b"J\xff\xff\xff\xffJ\0\xf4\xff\xff\x86"),
        forged(content=b"](K\1e"),
        raw(b"})" + b"\x85" * 1_000_000 + b"K\1s"),  # a tuple a million deep as a key
        raw(b"}(U\4data" + b"]" * 1_000_000 + b"a" * 999_999 + b"u"),
        # Lists of lists that double: 2**n numbers by n opcodes.
        raw(b"]q\0", b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60))),
        # The same 4,000 characters coded again and again.
        raw(b"X\xa0\x0f\0\0" + b"a" * 4000, b"q\0c_codecs\nencode\nq\1", b"h\1h\0X\6\0\0\0latin1\x86R" * 20_000),
        raw(b"K\1" * 1_000_000),
        raw(b"\x8b\xff\xff\xff\x7f" + b"\1" * 100),  # a number of 2 GB
        raw(b"}(U\6labels](\x8a\x09" + b"\1" * 9 + b"eu"),  # 2**70 and the like
        b"(lp0\nI1\na.", b"", b"\x80", b"\x80\2", b"\x80\6}.", raw(b"}b"), raw(b"t"), raw(b"h\0"), raw(b"}}s"),
    ],
    ids=range(24),
)  # fmt: skip
def test_forged_pickles_and_bombs_are_refused_within_little_memory(data):
    tracemalloc.start()
    try:
        with pytest.raises(pickles.Refused):
            pickles.loads(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(data) + 1_000_000  # the stack, and nothing that grows faster than the file


def test_the_work_on_a_pickle_is_bounded(monkeypatch):
    monkeypatch.setattr(pickles, "_MOST_OPCODES", 1000)
    with pytest.raises(pickles.Refused, match="more than 1000 opcodes"):
        pickles.loads(raw(b"]", b"K\1a" * 1000))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("encoding", ["bytes", "latin1"])
@pytest.mark.parametrize("dump", [pickle.dumps, pickle._dumps])
def test_files_written_again_by_python_3_are_read(dump, encoding, protocol):
    rows = RANDOM.integers(0, 256, (3, 3072), np.uint8)
    official = pickled({b"data": rows, b"labels": [1, 2, 3], b"filenames": [b"a.png"] * 3, b"batch_label": b"x"})
    found = pickles.loads(dump(pickle.loads(official, encoding=encoding), protocol=protocol))
    np.testing.assert_array_equal(found[b"data"], rows)
    assert found[b"labels"] == [1, 2, 3]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.skipif("UNIMIX_DATA_DIR" not in os.environ, reason="$UNIMIX_DATA_DIR does not name the real files")
def test_the_real_files_are_read_as_pickle_reads_them(name):
    layout, (_, (rows, labels), names) = cifar.LAYOUTS[name], cifar.read_rows(name)
    folder = readers.search_path("") / layout.python
    content = pickle.loads((folder / layout.python_files[1]).read_bytes(), encoding="bytes")
    np.testing.assert_array_equal(rows, content[b"data"])
    assert labels.tolist() == content[layout.label_key]
    meta = pickle.loads((folder / layout.python_files[2]).read_bytes(), encoding="bytes")
    assert names == tuple(n.decode() for n in meta[layout.names_key])


@pytest.mark.parametrize("labels", [[3, 2**70], [3], [3, [1]], [3, b"1"], [3, None], 3])
def test_labels_that_are_none_get_a_sentence(tmp_path, labels):
    folder = write_python(tmp_path, "cifar10", rows_and_labels(50, 10), rows_and_labels(10, 10), "abcdefghij")
    (folder / "data_batch_2").write_bytes(pickled({b"data": np.ones((2, 3072), np.uint8), b"labels": labels}))
    with pytest.raises(UserError, match="data_batch_2 "):
        cifar.read_rows("cifar10", str(tmp_path))


@pytest.fixture
def config(tmp_path):
    train, test = rows_and_labels(500, 10), rows_and_labels(20, 10)
    train[0][np.flatnonzero(train[1] == 9)[:]] = 0
    write_binary(tmp_path, "cifar10", train, test, "abcdefghij")
    data = {"source": "cifar10", "dir": str(tmp_path), "download": False, "profile": "exp", "subset_seed": 0}
    return ConfigDict({**data, "imbalance": 5.0, "validation_per_class": 0, "split_seed": 0})


def test_a_cut_with_a_black_image_is_refused(config):
    with pytest.raises(UserError, match="10 of the .* chosen training images are all black"):
        sources.load(config)


@pytest.fixture
def whole(tmp_path, config):
    """The config of a data set without black images: 50 training and 4 test images a class."""
    config.dir = str(tmp_path / "whole")
    (tmp_path / "whole").mkdir()
    write_binary(tmp_path / "whole", "cifar10", rows_and_labels(500, 10), rows_and_labels(40, 10), "abcdefghij")
    return config


def test_a_balanced_part_of_the_test_images_is_set_apart(whole):
    assert sources.load(whole).validation is None
    parts = {}
    for seed in (0, 0, 1):
        whole.validation_per_class, whole.split_seed = 3, seed
        splits = sources.load(whole)
        np.testing.assert_array_equal(np.bincount(splits.validation.labels), [3] * 10)
        np.testing.assert_array_equal(np.bincount(splits.test.labels), [1] * 10)
        images = [image.tobytes() for split in (splits.validation, splits.test) for image in split.images]
        assert len(set(images)) == 40
        parts.setdefault(seed, []).append(splits.validation.images)
    np.testing.assert_array_equal(*parts[0])
    assert (parts[0][0] != parts[1][0]).any()


@pytest.mark.parametrize("number", [-1, 4])
def test_the_test_set_cannot_be_set_apart_wholly(whole, number):
    whole.validation_per_class = number
    with pytest.raises(UserError, match="smallest class has 4 test images, of which 0 to 3"):
        sources.load(whole)


@pytest.mark.skipif("UNIMIX_DATA_DIR" not in os.environ, reason="$UNIMIX_DATA_DIR does not name the real files")
def test_the_real_cut_is_the_published_one(golden):
    data = {"source": "cifar10", "dir": "", "download": False, "profile": "exp", "subset_seed": 0, "imbalance": 100.0}
    splits = sources.load(ConfigDict({**data, "validation_per_class": 0, "split_seed": 0}))
    (rows, _), _, _ = cifar.read_rows("cifar10")
    np.testing.assert_array_equal(
        splits.train.images, cifar.to_images(rows[golden("subset_official")["indices_c10_exp_100"]])
    )
    assert len(splits.test.labels) == 10_000
    assert splits.train.class_names[0] == "airplane"
