"""Prepared TFDS directories, read record by record, without TensorFlow. Touches files."""

import pathlib
from typing import Any, NamedTuple

import numpy as np

from unimix_jax.data.splits import Source
from unimix_jax.errors import UserError

INFO = "dataset_info.json"
_SPLITS = {"train": ("train",), "validation": ("validation", "val", "dev"), "test": ("test",)}


class _Records(NamedTuple):
    """The encoded images of one split by position; a tuple, so that it travels to worker processes."""

    records: Any  # position -> the bytes of a tf.train.Example
    key: str  # of the image in it

    def __call__(self, position: int) -> bytes:
        return _feature(self.records[position], self.key).bytes_list.value[0]


def is_prepared(directory: pathlib.Path) -> bool:
    """Return whether a directory is one that TFDS has prepared, or holds its only version."""
    return _version(directory) is not None


def read(directory: pathlib.Path, mean: np.ndarray, std: np.ndarray) -> dict[str, Source]:
    """Read the labels of a prepared data set, and open its images.

    Args:
      directory: .../NAME/VERSION, or .../NAME or .../NAME/CONFIG with one version.
      mean, std: float32[C], of the sources.

    Returns:
      Sources by split: train, and validation and test where they are; a validation split alone is the test.

    Raises:
      UserError: not stored as array_record, or without images and class labels.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import decode

    directory = _version(directory)
    builder = tfds.builder_from_directory(directory)
    features = dict(builder.info.features.items())
    keys = builder.info.supervised_keys or ("image", "label")
    if not (
        len(keys) == 2
        and isinstance(features.get(keys[0]), tfds.features.Image)
        and isinstance(features.get(keys[1]), tfds.features.ClassLabel)
    ):
        raise UserError(f"{directory} has no image {keys[0]!r} with a class label; its features are {list(features)}")
    found = {}
    for split, names in _SPLITS.items():
        name = next((name for name in names if name in builder.info.splits), None)
        if name is None:
            continue
        try:
            records = builder.as_data_source(name, deserialize_method=decode.DeserializeMethod.RAW_BYTES)
        except NotImplementedError:
            raise UserError(
                f"{directory} is not stored for reading in any order; prepare it with "
                "download_and_prepare(file_format='array_record')"
            ) from None
        labels = [_feature(records[i], keys[1]).int64_list.value[0] for i in range(len(records))]
        found[split] = Source(
            np.array(labels, np.int32),
            tuple(features[keys[1]].names),
            mean,
            std,
            names=tuple(f"{name}[{i}]" for i in range(len(records))),
            root=builder.info.full_name,
            record=_Records(records, keys[0]),
        )
    if "train" not in found:
        raise UserError(f"{directory} has no split 'train', only {', '.join(builder.info.splits)}")
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
    return found


def _version(directory: pathlib.Path) -> pathlib.Path | None:
    if (directory / INFO).is_file():
        return directory
    versions = sorted(path.parent for path in directory.glob(f"*/{INFO}"))
    return versions[0] if len(versions) == 1 else None


def _feature(record: bytes, key: str):
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature[key]
