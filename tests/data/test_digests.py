import os
import shutil

import numpy as np
import pytest

from unimix_jax.data import digests
from unimix_jax.data.types import Source


@pytest.fixture
def photographs(tmp_path):
    """Files of 50 to 61 bytes, of which only every third is looked into."""
    random = np.random.default_rng(0)
    (tmp_path / "a").mkdir()
    names = tuple(f"a/{i}.jpg" for i in range(12))
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(random.bytes(50 + i))
    return Source(np.zeros(12, np.int32), ("x",), np.zeros(3), np.ones(3), names=names, root=str(tmp_path))


def test_a_copy_has_the_same_content_whatever_its_times(photographs, tmp_path):
    before = digests.content(photographs)
    assert before["bytes"] == sum(range(50, 62))
    for name in photographs.names:
        os.utime(tmp_path / name, (1, 1))
    shutil.copytree(tmp_path / "a", tmp_path / "copy" / "a", copy_function=shutil.copyfile)
    assert digests.content(photographs._replace(root=str(tmp_path / "copy"))) == before


def test_other_contents_under_the_same_names_are_seen(photographs, tmp_path, monkeypatch):
    before = digests.content(photographs)
    first = tmp_path / photographs.names[0]
    content = first.read_bytes()
    first.write_bytes(content[::-1])  # of the same size
    found = digests.content(photographs)
    assert {key for key in found if found[key] != before[key]} == {"sample"}
    first.write_bytes(content)
    monkeypatch.setattr(digests, "_SAMPLED", 4)
    before = digests.content(photographs)
    (tmp_path / photographs.names[1]).write_bytes(b"another")  # none of the four that are looked into
    found = digests.content(photographs)
    assert {key for key in found if found[key] != before[key]} == {"bytes", "sizes"}
    first.unlink()
    assert digests.content(photographs)["bytes"] == found["bytes"] - 50


def test_what_is_no_file_is_not_opened(photographs, tmp_path):
    path = tmp_path / photographs.names[3]
    path.unlink()
    os.mkfifo(path)  # reading it would wait for ever
    assert digests.content(photographs)["bytes"] == sum(range(50, 62)) - 53


def test_of_records_the_sample_speaks(photographs):
    records = [bytes([i]) for i in range(12)]
    before = digests.content(photographs._replace(record=records.__getitem__))
    assert set(before) == {"sample"}
    records[11] = b"other"
    assert digests.content(photographs._replace(record=records.__getitem__)) != before


def test_images_in_memory_are_covered_by_their_digest():
    source = Source(np.zeros(1, np.int32), ("x",), np.zeros(1), np.ones(1), images=np.zeros((1, 2, 2, 1), np.uint8))
    assert digests.content(source) is None


def test_digests_tell_names_and_labels(photographs):
    assert digests.digest(photographs) == digests.digest(photographs._replace(root="elsewhere"))
    assert digests.digest(photographs) != digests.digest(photographs._replace(labels=np.arange(12, dtype=np.int32)))
    assert digests.digest(photographs) != digests.digest(photographs.take(np.arange(12)[::-1]))
