import os

import numpy as np
import pytest

from unimix_jax.data.types import Source, Splits

FLAT = np.zeros(1, np.float32)


def source(labels, **fields):
    return Source(np.array(labels, np.int32), ("a", "b"), FLAT, FLAT, **fields)


def test_a_source_of_some_examples_has_their_labels_and_images():
    images = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    taken = source([0, 1, 0, 1], images=images).take(np.array([3, 0]))
    assert taken.labels.tolist() == [1, 0]
    assert taken.images.ravel().tolist() == [3, 0]


def test_a_source_of_some_records_reads_them_under_their_names():
    records = source([0, 1, 1], names=("x[0]", "x[1]", "x[2]"), root="set", record=[b"0", b"1", b"2"].__getitem__)
    taken = records.take(np.array([2, 1])).take(np.array([1]))
    assert (taken.names, taken.read(0), taken.path_of(0)) == (("x[1]",), b"1", os.path.join("set", "x[1]"))


def test_an_encoded_image_is_read_from_its_path(tmp_path):
    (tmp_path / "1.jpg").write_bytes(b"pixels")
    files = source([0, 1], names=("1.jpg", "absent.jpg"), root=str(tmp_path))
    assert files.path_of(0) == str(tmp_path / "1.jpg")
    assert files.read(0) == b"pixels"
    with pytest.raises(FileNotFoundError):
        files.read(1)


def test_splits_count_the_classes_of_training_and_name_the_evaluated_ones():
    splits = Splits(source([1, 1, 1]), None, source([0]))
    assert splits.counts.tolist() == [0, 3]
    assert list(splits.evaluated) == ["test"]
    assert list(splits._replace(validation=source([1])).evaluated) == ["validation", "test"]
