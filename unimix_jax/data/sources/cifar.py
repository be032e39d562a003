"""The official CIFAR-10 and CIFAR-100 files, python or binary version, and their download. Touches files."""

import pathlib
from typing import NamedTuple

import numpy as np

from unimix_jax import storage
from unimix_jax.data import download, pickles
from unimix_jax.data.types import search_path
from unimix_jax.errors import UserError

HOME = "https://www.cs.toronto.edu/~kriz/"
PAGE = HOME + "cifar.html"


class Layout(NamedTuple):
    """Where one data set keeps its images, in both versions."""

    classes: int
    archive: str  # the binary version, which needs no unpickling
    md5: str  # as published on PAGE
    binary: str  # its folder
    binary_files: tuple[tuple[str, ...], str, str]  # train, test, class names
    label_bytes: int  # before each image; the last of them is the (fine) label
    python: str
    python_files: tuple[tuple[str, ...], str, str]
    label_key: bytes
    names_key: bytes


LAYOUTS = {
    "cifar10": Layout(
        classes=10,
        archive="cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        binary="cifar-10-batches-bin",
        binary_files=(tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt"),
        label_bytes=1,
        python="cifar-10-batches-py",
        python_files=(tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"),
        label_key=b"labels",
        names_key=b"label_names",
    ),
    "cifar100": Layout(
        classes=100,
        archive="cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        binary="cifar-100-binary",
        binary_files=(("train.bin",), "test.bin", "fine_label_names.txt"),
        label_bytes=2,
        python="cifar-100-python",
        python_files=(("train",), "test", "meta"),
        label_key=b"fine_labels",
        names_key=b"fine_label_names",
    ),
}
MEAN = (0.4914, 0.4822, 0.4465)  # of CIFAR-10's training pixels / 255; the field uses them for both
STD = (0.2023, 0.1994, 0.2010)
_LARGEST = 512 * storage.MIB  # bytes of a file; the largest official one has 155 MB
_LARGEST_NAMES = storage.MIB


def read(name: str, directory: str = "", fetch: bool = False):
    """Read a CIFAR data set in the order of its files.

    Args:
      name: "cifar10" or "cifar100".
      directory: the folder that holds the official folder; "" see `search_path`.
      fetch: download the binary version (170 MB) if neither version is there.

    Returns:
      (rows, labels) of the training files, (rows, labels) of the test file, class names; rows are
      uint8[N, 3072] (see `to_images`), labels int32[N].

    Raises:
      UserError: files are missing, damaged, or hold what CIFAR's files never do.
    """
    layout, root = LAYOUTS[name], search_path(directory)
    if root.name in (layout.python, layout.binary):
        root = root.parent  # the official folder itself was named
    folders = root / layout.python, root / layout.binary
    if fetch and not any(folder.exists() for folder in folders):
        archive = root / layout.archive
        theirs = archive.exists()
        if theirs:
            download.check(archive, layout.md5)
        else:
            download.fetch(HOME + layout.archive, archive, layout.md5, _LARGEST)
        train, test, names = layout.binary_files
        download.extract(archive, folders[1], (*train, test, names), _LARGEST)
        if not theirs:
            archive.unlink()
    for folder, files, read_rows, read_names in (
        (folders[0], layout.python_files, _python_rows, _python_names),
        (folders[1], layout.binary_files, _binary_rows, _binary_names),
    ):
        if folder.exists():
            train, test, names = files
            for file in (*train, test, names):
                if not (folder / file).is_file():
                    raise UserError(f"{folder} lacks the file {file}; unpack the archive from {PAGE} again")
            parts = [read_rows(folder / file, layout) for file in train]
            return (
                (np.concatenate([rows for rows, _ in parts]), np.concatenate([labels for _, labels in parts])),
                read_rows(folder / test, layout),
                read_names(folder / names, layout),
            )
    raise UserError(
        f"{name} is not under {root}: neither {layout.python}/ nor {layout.binary}/ is there; add "
        f"--config.data.download, or get it from {PAGE} and name its folder by --config.data.dir or $UNIMIX_DATA_DIR"
    )


def to_images(rows: np.ndarray) -> np.ndarray:
    """Turn rows of three colour planes, uint8[N, 3072], into images uint8[N, 32, 32, 3]."""
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _checked(path: pathlib.Path, rows: np.ndarray, labels: np.ndarray, layout: Layout):
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != 3072 or labels.shape != rows.shape[:1]:
        raise UserError(
            f"{path} holds images {rows.dtype}{rows.shape} and {len(labels)} labels, not rows of 3072 bytes"
        )
    if not len(rows) or labels.min() < 0 or labels.max() >= layout.classes:
        raise UserError(f"{path} is empty or holds a label outside of 0..{layout.classes - 1}")
    return rows, labels


def _binary_rows(path: pathlib.Path, layout: Layout):
    data, size = np.frombuffer(storage.read_bytes(path, _LARGEST), np.uint8), 3072 + layout.label_bytes
    if len(data) % size:
        raise UserError(f"{path} has {len(data)} bytes, not a multiple of {size}; it is damaged")
    data = data.reshape(-1, size)
    return _checked(path, data[:, layout.label_bytes :], data[:, layout.label_bytes - 1].astype(np.int32), layout)


def _binary_names(path: pathlib.Path, layout: Layout) -> tuple[str, ...]:
    return _all_names(path, storage.read_text(path, _LARGEST_NAMES).split(), layout)


def _python_rows(path: pathlib.Path, layout: Layout):
    content = _unpickled(path, _LARGEST)
    rows, labels = content.get(b"data"), content.get(layout.label_key)
    if not isinstance(rows, np.ndarray) or not isinstance(labels, list):
        raise UserError(f"{path} holds no {layout.label_key.decode()} or no data; it is no CIFAR file")
    wrong = next((label for label in labels if type(label) is not int), None)
    if wrong is not None:
        raise UserError(f"{path} holds the label {wrong!r}, which is no whole number; it is no CIFAR file")
    return _checked(path, rows, np.array(labels, np.int32), layout)  # no opcode that is read has larger numbers


def _python_names(path: pathlib.Path, layout: Layout) -> tuple[str, ...]:
    names = _unpickled(path, _LARGEST_NAMES).get(layout.names_key)
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
        raise UserError(f"{path} holds no {layout.names_key.decode()}; it is no CIFAR file")
    return _all_names(path, [n.decode(errors="replace") if isinstance(n, bytes) else n for n in names], layout)


def _all_names(path: pathlib.Path, names: list[str], layout: Layout) -> tuple[str, ...]:
    if len(names) != layout.classes:
        raise UserError(f"{path} names {len(names)} classes instead of {layout.classes}")
    return tuple(names)


def _unpickled(path: pathlib.Path, limit: int) -> dict:
    try:
        return pickles.loads(storage.read_bytes(path, limit))
    except pickles.Refused as error:
        raise UserError(
            f"{path} cannot be read as a CIFAR file: {error}; get it again, or the binary version, from {PAGE}"
        ) from None
