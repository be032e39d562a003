"""CIFAR-10 and CIFAR-100 from their official files, the python or the binary version. Touches files."""

import pathlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from unimix_jax import storage
from unimix_jax.data import download, longtail, pickles
from unimix_jax.data.readers import search_path
from unimix_jax.data.types import Source, Splits
from unimix_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

HOME = "https://www.cs.toronto.edu/~kriz/"
PAGE = HOME + "cifar.html"
Labelled = tuple[np.ndarray, np.ndarray]  # rows uint8[N, 3072], labels int32[N]


class Layout(NamedTuple):
    """The files of one data set, in both versions."""

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


def read(data: "ConfigDict") -> Splits:
    """Read CIFAR-10 or CIFAR-100, with the long-tailed training set of LDAM-DRW.

    The test set stays whole, unless `data.validation_per_class` is above 0: so many test images of each class are then
    the validation set, and are not in the test set.

    Args:
      data: the group `config.data`, with `source` ("cifar10" or "cifar100"), `dir`, `download`,
        `validation_per_class`, `split_seed`, `profile`, `imbalance`, `subset_seed`.

    Returns:
      The splits.

    Raises:
      UserError: files are missing, damaged, or hold what CIFAR's files never do.
    """
    (rows, labels), (test_rows, test_labels), names = read_rows(data.source, data.dir, data.download)
    subset = longtail.subset_of_balanced(labels, len(names), data)
    rows, labels = rows[subset], labels[subset]
    black = np.flatnonzero(~rows.any(axis=1))
    if len(black):
        raise UserError(
            f"{len(black)} of the {len(subset)} chosen training images are all black (the first is image "
            f"{subset[black[0]]}): the files under {search_path(data.dir)} are not complete for "
            f"imbalance {data.imbalance:g}, profile {data.profile}, subset_seed {data.subset_seed}"
        )
    validation = longtail.hold_out(test_labels, len(names), data.validation_per_class, data.split_seed)
    held_out = f"{data.validation_per_class} test images of each class for validation, by chance (split_seed)"
    mean, std = np.float32(MEAN), np.float32(STD)

    def source(rows, labels):
        return Source(labels, names, mean, std, to_images(rows))

    return Splits(
        train=source(rows, labels),
        validation=source(test_rows[validation], test_labels[validation]) if validation.any() else None,
        test=source(test_rows[~validation], test_labels[~validation]),
        held_out=held_out if validation.any() else "",
    )


def read_rows(name: str, directory: str = "", fetch: bool = False) -> tuple[Labelled, Labelled, tuple[str, ...]]:
    """Read a CIFAR data set in the order of its files.

    Args:
      name: "cifar10" or "cifar100".
      directory: the folder that holds the official folder; "" for the default of `search_path`.
      fetch: whether to download the binary version (170 MB) if neither version exists.

    Returns:
      (rows, labels) of the training files, (rows, labels) of the test file, and the class names; rows are
      uint8[N, 3072] (see `to_images`), labels int32[N].

    Raises:
      UserError: files are missing, damaged, or hold what CIFAR's files never do.
    """
    layout, root = LAYOUTS[name], search_path(directory)
    if root.name in (layout.python, layout.binary):
        root = root.parent  # the official folder itself was named
    folders = root / layout.python, root / layout.binary
    if fetch and not any(folder.exists() for folder in folders):
        _download(layout, root)
    for folder, files, read_file, read_names in (
        (folders[0], layout.python_files, _python_rows, _python_names),
        (folders[1], layout.binary_files, _binary_rows, _binary_names),
    ):
        if folder.exists():
            train, test, names = files
            for file in (*train, test, names):
                if not (folder / file).is_file():
                    raise UserError(f"{folder} lacks the file {file}; unpack the archive from {PAGE} again")
            parts = [read_file(folder / file, layout) for file in train]
            return (
                (np.concatenate([rows for rows, _ in parts]), np.concatenate([labels for _, labels in parts])),
                read_file(folder / test, layout),
                read_names(folder / names, layout),
            )
    raise UserError(
        f"{name} is not under {root}: neither {layout.python}/ nor {layout.binary}/ is there; add "
        f"--config.data.download, or get it from {PAGE} and name its folder by --config.data.dir or $UNIMIX_DATA_DIR"
    )


def _download(layout: Layout, root: pathlib.Path) -> None:
    """Make the folder of the binary version; an archive that the user has put there is used and stays."""
    archive = root / layout.archive
    users_own = archive.exists()
    if users_own:
        download.check(archive, layout.md5)
    else:
        download.fetch(HOME + layout.archive, archive, layout.md5, _LARGEST)
    train, test, names = layout.binary_files
    download.extract(archive, root / layout.binary, (*train, test, names), _LARGEST)
    if not users_own:
        archive.unlink()


def to_images(rows: np.ndarray) -> np.ndarray:
    """Turn rows of three colour planes into images.

    Args:
      rows: uint8[N, 3072].

    Returns:
      uint8[N, 32, 32, 3].
    """
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _checked(path: pathlib.Path, rows: np.ndarray, labels: np.ndarray, layout: Layout) -> Labelled:
    """Return rows and labels; refuse other shapes, types or labels than CIFAR's."""
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != 3072 or labels.shape != rows.shape[:1]:
        raise UserError(
            f"{path} holds images {rows.dtype}{rows.shape} and {len(labels)} labels, not rows of 3072 bytes"
        )
    if not len(rows) or labels.min() < 0 or labels.max() >= layout.classes:
        raise UserError(f"{path} is empty or holds a label outside of 0..{layout.classes - 1}")
    return rows, labels


def _binary_rows(path: pathlib.Path, layout: Layout) -> Labelled:
    data, size = np.frombuffer(storage.read_bytes(path, _LARGEST), np.uint8), 3072 + layout.label_bytes
    if len(data) % size:
        raise UserError(f"{path} has {len(data)} bytes, not a multiple of {size}; it is damaged")
    data = data.reshape(-1, size)
    return _checked(path, data[:, layout.label_bytes :], data[:, layout.label_bytes - 1].astype(np.int32), layout)


def _binary_names(path: pathlib.Path, layout: Layout) -> tuple[str, ...]:
    return _all_names(path, storage.read_text(path, _LARGEST_NAMES).split(), layout)


def _python_rows(path: pathlib.Path, layout: Layout) -> Labelled:
    content = _unpickled(path, _LARGEST)
    rows, labels = content.get(b"data"), content.get(layout.label_key)
    if not isinstance(rows, np.ndarray) or not isinstance(labels, list):
        raise UserError(f"{path} holds no {layout.label_key.decode()} or no data; it is not a CIFAR file")
    wrong = next((label for label in labels if type(label) is not int), None)
    if wrong is not None:
        raise UserError(f"{path} holds the label {wrong!r}, which is not a whole number; it is not a CIFAR file")
    return _checked(path, rows, np.array(labels, np.int32), layout)  # the opcodes of `pickles` hold no larger numbers


def _python_names(path: pathlib.Path, layout: Layout) -> tuple[str, ...]:
    names = _unpickled(path, _LARGEST_NAMES).get(layout.names_key)
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
        raise UserError(f"{path} holds no {layout.names_key.decode()}; it is not a CIFAR file")
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
