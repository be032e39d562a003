import io
import json
import os
import socket
import tracemalloc
import zipfile

import numpy as np
import pytest

from unimix_jax import npz, priors, storage
from unimix_jax.errors import UserError
from unimix_jax.metrics.predictions import read_predictions
from unimix_jax.report import files
from unimix_jax.training import rundir


@pytest.fixture(params=["fifo", "device", "folder", "socket"])
def special(request, tmp_path):
    """A path that is there and no regular file; reading it would wait, or never end."""
    path = tmp_path / "special.npz"
    if request.param == "fifo":
        os.mkfifo(path)
    elif request.param == "device":
        path.symlink_to("/dev/zero")
    elif request.param == "folder":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.relpath(path))  # an absolute one may be too long
    return path


def test_what_is_no_regular_file_is_not_opened(special):
    from unimix_jax.data.sources import list_file
    from unimix_jax.models import pretrained, resnet

    for read in (
        read_predictions,
        storage.read_json,
        rundir.read_metrics,
        files.read_counts,
        lambda path: files.read_counts(path.rename(path.with_suffix(".txt"))),
    ):
        with pytest.raises((UserError, OSError), match="it must be a regular file"):
            read(special)
        special = special if special.exists() else special.with_suffix(".txt")
    with pytest.raises((UserError, OSError), match="it must be a regular file"):
        pretrained.digest(special)
    with pytest.raises((UserError, OSError), match="it must be a regular file"):
        pretrained.load(special, resnet.CifarResNet(3, 1), {})
    with pytest.raises(UserError, match="must be uniform, train"):
        priors.test_prior(str(special), np.array([1, 2]))
    with pytest.raises(UserError, match="which exists neither there nor in"):
        list_file.find(str(special), special.parent, "config.data.train_list")


def test_a_larger_file_than_any_of_its_kind_is_not_read(tmp_path):
    with open(tmp_path / "counts.txt", "wb") as file:
        file.truncate(1 << 40)  # without a block on the disk
    with pytest.raises(UserError, match="has more than 4 MiB"):
        files.read_counts(tmp_path / "counts.txt")
    with pytest.raises(UserError, match="has more than 16 MiB"):
        storage.read_json(tmp_path / "counts.txt")


ARRAYS = {
    "plain": np.arange(6.0).reshape(2, 3),
    "by_columns": np.asfortranarray(np.arange(24).reshape(2, 3, 4)),
    "big_endian": np.arange(6, dtype=">i2"),
    "single": np.array(7),
    "empty": np.zeros((0, 4), np.float16),
    "truths": np.array([True, False]),
    "text": np.array(["a", "bü", ""]),
    "bytes": np.array([b"x", b"yy"]),
    "complex": np.array([1j]),
    "long": np.zeros(3, np.longdouble),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_as_numpy_reads_them(tmp_path, save):
    save(tmp_path / "a.npz", **ARRAYS)
    read = npz.read_arrays(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as expected:
        assert list(read) == expected.files
        for name, array in read.items():
            np.testing.assert_array_equal(array, expected[name])
            assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }",
        '{"shape": (2, ), "descr": "<f8", "fortran_order": False}',
        "{'descr': '<f8', 'fortran_order': False, 'shape': (2L,), }",  # Python 2
    ],
)
def test_headers_of_other_writers_are_read(tmp_path, header):
    write_member(tmp_path / "a.npz", header, np.array([1.0, 2.0]).tobytes())
    np.testing.assert_array_equal(npz.read_arrays(tmp_path / "a.npz")["logits"], [1, 2])


def write_member(path, header, content=b"", method=zipfile.ZIP_STORED):
    data = header if isinstance(header, bytes) else header.encode() + b"\n"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("logits.npy", b"\x93NUMPY\1\0" + len(data).to_bytes(2, "little") + data + content)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 10), }",  # 40 GB declared, none there
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000000, 1000000000000000000), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 100 + "), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 2000 + ",), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 2000,
        "{'descr': " + "[" * 3000,
        "{'descr': '<U999999999', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f3', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<M8[s]', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f4', 'fortran_order': False}",
        "0x",
        "'",
        b"\xff" * 60,
    ],
)
def test_headers_are_compared_with_what_is_there_before_memory_is_taken(tmp_path, header):
    write_member(tmp_path / "a.npz", header, bytes(4))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="array 'logits'"):
            npz.read_arrays(tmp_path / "a.npz")
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_a_small_file_that_holds_gigabytes_is_not_unpacked(tmp_path):
    member = b"\x93NUMPY\1\0\x40\0" + b"{'descr': '|u1', 'fortran_order': False, 'shape': (10000000000,)}"
    member += b"\n" + bytes(400_000)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("logits.npy", member)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    at = data.index(b"PK\1\2") + 24  # the size that the list of members gives
    data[at : at + 4] = (3 << 30).to_bytes(4, "little")
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(UserError, match="it holds 3 GiB in a file of .* which is more than can be believed"):
        npz.read_arrays(tmp_path / "a.npz")
    with pytest.raises(UserError, match="it holds 3 GiB; at most 2 GiB are read"):
        npz.read_arrays(tmp_path / "a.npz", limit=2 << 30)


def test_empty_images_are_read_however_small_the_file_is(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "_FREE", 0)
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((4000, 32, 32), np.uint8))
    assert (tmp_path / "a.npz").stat().st_size < 4000 * 32 * 32 / 900
    assert not npz.read_arrays(tmp_path / "a.npz")["images"].any()


def test_names_of_arrays_are_told_without_the_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS, pickled=np.array([{}]))
    assert npz.array_names(tmp_path / "a.npz") == (*ARRAYS, "pickled")
    with pytest.raises(UserError, match="cannot read"):
        npz.array_names(tmp_path / "absent.npz")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_ways_to_compress_that_numpy_does_not_use_are_refused(tmp_path, method):
    # Their decoders give all of a block at once, whatever its size.
    write_member(tmp_path / "a.npz", "{'descr': '|u1', 'fortran_order': False, 'shape': (4,), }", bytes(4), method)
    with pytest.raises(UserError, match="compressed in a way"):
        npz.read_arrays(tmp_path / "a.npz")


def test_a_list_of_members_without_an_end_is_not_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for i in range(50):
            archive.writestr(f"{i:030000d}", b"")
    with pytest.raises(UserError, match="is no .npz file"):
        npz.read_arrays(tmp_path / "a.npz")


def test_text_that_is_none_and_names_without_number_are_refused(tmp_path):
    header = "{'descr': '<U1', 'fortran_order': False, 'shape': (1,), }"
    write_member(tmp_path / "a.npz", header, b"\xff\xff\xff\x7f")
    with pytest.raises(UserError, match="is damaged"):
        npz.read_arrays(tmp_path / "a.npz")
    with pytest.raises(UserError, match="at most 1000000 of up to 10000"):
        npz.names_of(np.zeros(1_000_001, "S1"), "class_names")
    with pytest.raises(UserError, match="at most 1000000 of up to 10000"):
        npz.names_of(np.zeros(1, "U10001"), "class_names")
    assert npz.names_of(np.array([[b"a", b"\xff"]]), "class_names") == ("a", "\ufffd")
    assert npz.names_of(np.array([1.5, 2]), "class_names") == ("1.5", "2.0")


@pytest.mark.parametrize("text", ["1e999", "NaN", "[Infinity]", "1" + "0" * 25, "-" + "9" * 5000, "[" * 10**5, "{", ""])
def test_json_that_holds_no_plain_finite_values_is_refused(text):
    with pytest.raises(ValueError, match="."):
        storage.parse_json(text)


def test_json_of_a_config_comes_back():
    value = {"seed": 2**64 - 1, "rate": 0.1, "path": "\udcff", "stages": [{"a": [None, True, -5]}]}
    assert storage.parse_json(json.dumps(value)) == value


def test_names_that_no_file_can_have_get_a_sentence():
    for name in ("a\0b", "\ud800"):
        with pytest.raises(OSError, match="cannot be the name of a file"):
            storage.open_regular(name)


def test_a_report_shows_a_path_that_is_no_text(tmp_path):
    storage.write_whole(tmp_path / "report.md", "data.dir | /data/\udcff")
    assert (tmp_path / "report.md").read_text() == "data.dir | /data/\\udcff"


def test_one_array_without_a_name_is_told_from_damage(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    (tmp_path / "a.npz").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="one array without a name"):
        npz.read_arrays(tmp_path / "a.npz")


def test_numbers_stand_between_spaces_and_comments(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text("1 2.5 # of the field\n\n-3e2\n# 4\n")
    assert storage.read_numbers(path, 100) == [1.0, 2.5, -300.0]
    assert storage.read_numbers(tmp_path / "absent.txt", 100) is None
    assert storage.read_numbers(tmp_path, 100) is None
    with pytest.raises(UserError, match="has more than 5 bytes"):
        storage.read_numbers(path, 5)
    path.write_text("1 two")
    with pytest.raises(UserError, match="the numbers in .* cannot be read: .*'two'"):
        storage.read_numbers(path, 100)
