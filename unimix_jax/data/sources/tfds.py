"""Directories that TFDS has prepared, read record by record, without TensorFlow. Touches files."""

import pathlib
from typing import Any, NamedTuple

import numpy as np

from unimix_jax import storage
from unimix_jax.data.types import Source
from unimix_jax.errors import UserError

INFO = "dataset_info.json"
FEATURES = "features.json"
_TFDS_FEATURES = "tensorflow_datasets.core.features."
_SPLITS = {"train": ("train",), "validation": ("validation", "val", "dev"), "test": ("test",)}


class _Records(NamedTuple):
    """The encoded images of one split, by position; a tuple, because worker processes receive it."""

    records: Any  # position -> the bytes of a tf.train.Example
    key: str  # of the image in it

    def __call__(self, position: int) -> bytes:
        return _feature(self.records[position], self.key).bytes_list.value[0]


def is_prepared(directory: pathlib.Path) -> bool:
    """Return whether TFDS has prepared a directory, or the only version in it.

    Args:
      directory: .../NAME/VERSION, or a folder above it.
    """
    return _version(directory) is not None


def read(directory: pathlib.Path, mean: np.ndarray, std: np.ndarray) -> dict[str, Source]:
    """Read the labels of a prepared data set, and open its images.

    Args:
      directory: .../NAME/VERSION, or .../NAME or .../NAME/CONFIG with one version.
      mean: float32[C], of the sources.
      std: float32[C], of the sources.

    Returns:
      Sources by split: "train", and "validation" and "test" where they exist; a validation split alone is the test.

    Raises:
      UserError: the data is damaged, is not stored as array_record, or has no images with class labels.
    """
    import tensorflow_datasets  # noqa: F401, outside of the `try`: an error of its import is no damage of the data

    directory = _version(directory)
    _check_description(directory)
    try:
        return _read(directory, mean, std)
    except UserError:
        raise
    except Exception as error:  # TFDS and its readers raise nearly any type for damaged data
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{directory} cannot be read as a prepared TFDS directory ({type(error).__name__}: {reason}); prepare it "
            "again"
        ) from None


def _check_description(directory: pathlib.Path) -> None:
    """Refuse what TFDS would open or import unchecked: special files, and modules that a description names."""
    for path in directory.iterdir():
        if not path.is_dir():
            storage.open_regular(path).close()
    for name in (INFO, FEATURES):
        try:
            content = storage.parse_json(storage.read_bytes(directory / name, 16 * storage.MIB))
        except FileNotFoundError:
            raise UserError(f"{directory} has no {name}; prepare it again with TFDS 4 or later") from None
        except ValueError as error:
            raise UserError(f"{directory / name} is damaged ({error}); prepare it again") from None
        if name == FEATURES:
            _check_features(directory / name, content)


def _check_features(path: pathlib.Path, content: Any) -> None:
    """Refuse a description of features that names a class of another module than TFDS's own."""
    nodes = [content]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            for key in ("pythonClassName", "type"):
                name = node.get(key)
                if isinstance(name, str) and not name.startswith(_TFDS_FEATURES):
                    raise UserError(
                        f"{path} names the feature {name[:100]!r}, which is none of TFDS's own; "
                        "images with class labels need no other"
                    )
            nodes += node.values()
        elif isinstance(node, list):
            nodes += node


def _read(directory: pathlib.Path, mean: np.ndarray, std: np.ndarray) -> dict[str, Source]:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import decode

    builder = tfds.builder_from_directory(directory)
    features = dict(builder.info.features.items())
    keys = builder.info.supervised_keys or ("image", "label")
    if not (
        len(keys) == 2
        and isinstance(features.get(keys[0]), tfds.features.Image)
        and isinstance(features.get(keys[1]), tfds.features.ClassLabel)
    ):
        raise UserError(f"{directory} has no image {keys[0]!r} with a class label; its features are {list(features)}")
    sources = {}
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
        classes = features[keys[1]].num_classes
        labels = [_label(records[i], keys, classes, f"{directory}, {name}[{i}]") for i in range(len(records))]
        sources[split] = Source(
            np.array(labels, np.int32),
            tuple(features[keys[1]].names),
            mean,
            std,
            names=tuple(f"{name}[{i}]" for i in range(len(records))),
            root=builder.info.full_name,
            record=_Records(records, keys[0]),
        )
    if "train" not in sources:
        raise UserError(f"{directory} has no split 'train', only {', '.join(builder.info.splits)}")
    if "test" not in sources and "validation" in sources:
        sources["test"] = sources.pop("validation")
    return sources


def _version(directory: pathlib.Path) -> pathlib.Path | None:
    """Return the directory of the version: the directory itself, or the only one in it; otherwise None."""
    if (directory / INFO).is_file():
        return directory
    versions = sorted(path.parent for path in directory.glob(f"*/{INFO}"))
    return versions[0] if len(versions) == 1 else None


def _label(record: bytes, keys: tuple[str, str], classes: int, where: str) -> int:
    """Return the label of a record that has an image and one label."""
    images, labels = _feature(record, keys[0]).bytes_list.value, _feature(record, keys[1]).int64_list.value
    if len(images) != 1 or len(labels) != 1 or not 0 <= labels[0] < classes:
        raise UserError(
            f"{where} holds {len(images)} images and the labels {list(labels[:3])}; each record must hold one image "
            f"and one label in 0..{classes - 1}"
        )
    return labels[0]


def _feature(record: bytes, key: str):
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature[key]
