"""The type that every data source returns, and cutting and splitting a data set. numpy only; touches files."""

import hashlib
import os
import pathlib
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from unimix_jax import priors, storage
from unimix_jax.data.rng import Stream, generator
from unimix_jax.errors import UserError

_MOST_BYTES = 2**31  # of an encoded image
_SAMPLED, _START = 2048, 2**16  # images whose content is looked at, and how many bytes of each


class Source(NamedTuple):
    """The images of one split."""

    labels: np.ndarray  # int32[N]
    class_names: tuple[str, ...]  # K
    mean: np.ndarray  # float32[C], of pixels / 255
    std: np.ndarray  # float32[C]
    images: np.ndarray | None = None  # uint8[N, H, W, C], where all fit into memory; else:
    names: tuple[str, ...] | None = None  # N encoded images: paths below `root`, or names of records
    root: str = ""
    record: Callable[[int], bytes] | None = None  # position -> encoded image, where names are no paths

    def read(self, position: int) -> bytes:
        """Return an encoded image as it is stored."""
        return self.record(position) if self.record else read_regular(os.path.join(self.root, self.names[position]))

    def take(self, positions: np.ndarray) -> "Source":
        """Return the source of some of the examples, in the order of `positions` (int[M])."""
        images = None if self.images is None else self.images[positions]
        names = None if self.names is None else tuple(self.names[i] for i in positions.tolist())
        record = None if self.record is None else _Positions(self.record, positions)
        return self._replace(labels=self.labels[positions], images=images, names=names, record=record)


class _Positions(NamedTuple):
    """Records by their place in a list of positions; a tuple, so that it travels to worker processes."""

    record: Callable[[int], bytes]
    positions: np.ndarray

    def __call__(self, position: int) -> bytes:
        return self.record(int(self.positions[position]))


class Splits(NamedTuple):
    """Training, validation and test images; they never share one."""

    train: Source
    validation: Source | None
    test: Source
    held_out: str = ""  # which images were set apart from which, in words; "" if the data came with these splits
    unreadable: int | None = None  # training images left out because they cannot be read; None if none was looked at

    @property
    def counts(self) -> np.ndarray:
        """Training images per class, int64[K]."""
        return priors.class_counts(self.train.labels, len(self.train.class_names))

    @property
    def evaluated(self) -> dict[str, Source]:
        """The splits that are predicted, by name, validation first."""
        return {name: s for name, s in (("validation", self.validation), ("test", self.test)) if s is not None}


def read_regular(path: str | os.PathLike) -> bytes:
    """Return the content of a regular file of an image's size.

    Raises:
      OSError: it cannot be read, is no regular file, or is larger than any image.
    """
    try:
        return storage.read_bytes(path, _MOST_BYTES)
    except UserError as error:
        raise OSError(str(error)) from None


def search_path(directory: str) -> pathlib.Path:
    """Return where data is looked for: `directory` if given, else $UNIMIX_DATA_DIR, else ~/data."""
    return pathlib.Path(directory or os.environ.get("UNIMIX_DATA_DIR") or "~/data").expanduser()


def digest(source: Source) -> str:
    """Return a digest of a split's labels and images in their order: it names a cut exactly.

    Of images that are read one by one it covers the names; `content` is for the rest.
    """
    sha = hashlib.sha256(np.ascontiguousarray(source.labels, np.int32))
    if source.images is None:
        sha.update("\n".join(source.names).encode(errors="surrogateescape"))
    else:
        sha.update(np.ascontiguousarray(source.images))
    return sha.hexdigest()[:16]


def content(source: Source) -> dict | None:
    """Return what tells encoded images from others under the same names; None for images in memory (see `digest`).

    It covers the sizes of all files, and the first 64 KiB of up to 2,048 images at equal distances. Modification times
    are no part of it: a copy of the data has others. The sizes cost a look at each file, which is less than one epoch
    costs; records have no sizes of their own, so the sample alone speaks for them. What cannot be read counts as empty.

    Returns:
      {"bytes": of all files together, "sizes": digest, "sample": digest}; of records "sample" alone.
    """
    if source.images is not None:
        return None
    some = np.unique(np.linspace(0, len(source.names) - 1, _SAMPLED).astype(np.int64)).tolist()
    found = {}
    with ThreadPoolExecutor(16) as pool:
        if source.record is None:
            blocks = (source.names[i : i + 1024] for i in range(0, len(source.names), 1024))
            sizes = np.concatenate(list(pool.map(lambda names: _sizes(source.root, names), blocks)))
            found = {"bytes": int(sizes.sum()), "sizes": hashlib.sha256(sizes.astype("<i8")).hexdigest()[:16]}
        sha = hashlib.sha256()
        for start in pool.map(lambda position: _start(source, position), some):
            sha.update(hashlib.sha256(start).digest())
    return found | {"sample": sha.hexdigest()[:16]}


def _sizes(root: str, names: tuple[str, ...]) -> np.ndarray:
    """Return the sizes of files in bytes, int64[N]; 0 for what is no file that can be read."""
    sizes = np.zeros(len(names), np.int64)
    for i, name in enumerate(names):
        try:
            about = os.stat(os.path.join(root, name))
        except OSError:
            continue
        sizes[i] = about.st_size if stat.S_ISREG(about.st_mode) else 0
    return sizes


def _start(source: Source, position: int) -> bytes:
    """Return the first bytes of an encoded image; none of what is no file that can be read."""
    if source.record is not None:
        return source.record(position)[:_START]
    try:
        with storage.open_regular(os.path.join(source.root, source.names[position])) as file:
            return file.read(_START)
    except OSError:
        return b""


def long_tailed(labels: np.ndarray, num_classes: int, data) -> np.ndarray:
    """Choose the long-tailed training set; its largest class has the size of the smallest full one.

    Args:
      labels: int[N] of the full set.
      num_classes: K; class 0 becomes the largest.
      data: `profile`, `imbalance`, `cut_seed` of `config.data`.

    Returns:
      int64[M], positions.

    Raises:
      UserError: a class would be left without an image.
    """
    full = priors.class_counts(labels, num_classes)
    counts = priors.profile(data.profile, int(full.min()), num_classes, data.imbalance)
    if full.min() > 0 and not counts.all():
        first = np.flatnonzero(counts == 0)[0]
        raise UserError(
            f"an imbalance of {data.imbalance:g} leaves no training image in class {first}: the cut starts from the "
            f"size of the smallest class, {full.min()}; take a smaller imbalance, or 1 for all images"
        )
    return priors.long_tailed_subset(labels, counts, data.cut_seed)


def held_out(labels: np.ndarray, num_classes: int, per_class: int, seed: int) -> np.ndarray:
    """Choose the same number of each class's images at random, by `seed`: bool[N].

    Raises:
      UserError: a class has no more images than that.
    """
    smallest = int(priors.class_counts(labels, num_classes).min())
    if not 0 <= per_class < smallest:
        raise UserError(
            f"config.data.validation_per_class is {per_class}; the smallest class has {smallest} test images, of which "
            f"0 to {smallest - 1} can be set apart"
        )
    random, held = generator(seed, Stream.SPLIT, 0), np.zeros(len(labels), bool)
    for c in range(num_classes):
        held[random.permutation(np.flatnonzero(labels == c))[:per_class]] = True
    return held


def long_tailed_of_skewed(labels: np.ndarray, num_classes: int, data) -> np.ndarray:
    """Choose a long-tailed training set of a set that is skewed already: its largest class becomes the largest.

    As many images as the profile allows: the largest class is the largest such that every class, by its rank, has
    enough.

    Args, returns and raises as `long_tailed`; a tie of sizes goes by class number.
    """
    full = priors.class_counts(labels, num_classes)
    ranked = np.argsort(-full, kind="stable")
    low, high = 0, int(full.max())
    while low < high:  # the profile rises with its largest class
        middle = (low + high + 1) // 2
        fits = (priors.profile(data.profile, middle, num_classes, data.imbalance) <= full[ranked]).all()
        low, high = (middle, high) if fits else (low, middle - 1)
    counts = np.empty(num_classes, np.int64)
    counts[ranked] = priors.profile(data.profile, max(low, 1), num_classes, data.imbalance)
    if not counts.all():
        raise UserError(
            f"an imbalance of {data.imbalance:g} leaves no training image in class {np.flatnonzero(counts == 0)[0]}: "
            f"the largest class could have {low} at most; take a smaller imbalance, or 1 for all images"
        )
    return priors.long_tailed_subset(labels, counts, data.cut_seed)


def stratified(labels: np.ndarray, num_classes: int, shares: dict[str, float], seed: int) -> dict[str, np.ndarray]:
    """Split a data set by chance, each class by the same shares, the tail kept for training.

    Of n images of a class each split gets round(share * n), but at least 1 where n > the number of splits, and
    training keeps at least half of a class; a single image is training's.

    Args:
      labels: int[N].
      num_classes: K.
      shares: of the splits beside training, by name, in the order in which few images go to them.
      seed: of the choice.

    Returns:
      {"train": ..., and each split of `shares`}: int64 positions, rising.
    """
    random, parts = generator(seed, Stream.SPLIT, 0), {name: [] for name in ("train", *shares)}
    order = np.argsort(labels, kind="stable")
    for members in np.split(order, np.cumsum(priors.class_counts(labels, num_classes))[:-1]):
        members, size, left = random.permutation(members), len(members), len(members) // 2
        for name, share in shares.items():
            wanted = max(round(share * size), int(share > 0 and size > len(shares)))
            taken = min(wanted, left)
            left -= taken
            parts[name].append(members[:taken])
            members = members[taken:]
        parts["train"].append(members)
    return {name: np.sort(np.concatenate(found)) for name, found in parts.items()}
