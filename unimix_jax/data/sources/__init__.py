"""Where images come from: each function reads one kind of data and returns `Splits`. Touches files.

A new data set is a function here, its name in `SOURCES`, and a config.
"""

import gzip
import importlib.util
import logging
import pathlib

import numpy as np

from unimix_jax import priors
from unimix_jax.data.rng import Stream, generator
from unimix_jax.data.sources import cifar, photographs
from unimix_jax.data.types import Source, Splits, held_out, long_tailed, search_path
from unimix_jax.errors import UserError, did_you_mean, one_of
from unimix_jax.npz import array_names, names_of, read_arrays
from unimix_jax.storage import GIB

_log = logging.getLogger(__name__)

DIGITS_PER_CLASS = {"test": 50, "validation": 25}
_CHANNELS = 4  # the most that images usually have: grey, grey and alpha, RGB, RGBA


def load(data) -> Splits:
    """Read the data that a config describes, and refuse what cannot be trained on.

    Args:
      data: the group `config.data`; `data.source` is a name in `SOURCES`, the rest is what that
        source reads.

    Raises:
      UserError: the data is missing, damaged, of one class, or a class has no training image.
    """
    source = SOURCES[one_of("data source (config.data.source)", data.source, SOURCES)]
    for field in _FIELDS.get(data.source, ()):
        if field not in data:
            raise UserError(f"config.data has no field {field!r}, which the source {data.source!r} reads; see configs/")
    splits = source(data)
    check_classes(splits)
    return splits


def check_classes(splits: Splits) -> None:
    """Refuse data of which no classifier can be trained.

    Raises:
      UserError: there is one class, or classes have no training image; how many the other splits have is said.
    """
    names, counts = splits.train.class_names, splits.counts
    if len(names) < 2:
        only = f"only one class, {names[0]!r}" if names else "no class"
        raise UserError(f"the data has {only}; a classifier needs images of two classes at least")
    empty = np.flatnonzero(counts == 0).tolist()
    if empty:
        shown = ", ".join(f"{c} ({names[c]})" for c in empty[:3])
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        elsewhere = ""
        for split, source in splits.evaluated.items():
            there = priors.class_counts(source.labels, len(names))
            some = [f"{there[c]} of {names[c]}" for c in empty if there[c]]
            if some:
                elsewhere += f", but {split} has {', '.join(some[:3])}{', ...' if len(some) > 3 else ''}"
        raise UserError(f"no training image in class {shown}{more}{elsewhere}; leave the class out or give it images")


def digits(data) -> Splits:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey: real images that need no download.

    50 images a class are held out for the test and 25 for validation, both balanced; the
    long-tailed training set is cut from the rest. Only scikit-learn's data file is read.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None:
        raise UserError("the digits come with scikit-learn, which is not installed: pip install scikit-learn")
    path = pathlib.Path(spec.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    if path.is_file():
        with gzip.open(path, "rt") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.int32)
    else:  # another scikit-learn keeps the file elsewhere: ask the library itself, at 1.4 s
        from sklearn import datasets

        table = np.column_stack(datasets.load_digits(return_X_y=True)).astype(np.int32)
    images = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = table[:, 64]
    random = generator(data.split_seed, Stream.SPLIT, 0)
    held = {name: [] for name in ("test", "validation", "train")}
    for c in range(10):
        positions = random.permutation(np.flatnonzero(labels == c))
        cuts = np.cumsum(list(DIGITS_PER_CLASS.values()))
        for name, part in zip(held, np.split(positions, cuts), strict=True):
            held[name].append(part)
    at = {name: np.sort(np.concatenate(parts)) for name, parts in held.items()}
    at["train"] = at["train"][long_tailed(labels[at["train"]], 10, data)]
    mean, std = _statistics(images[at["train"]])
    names = tuple(str(c) for c in range(10))
    sources = {name: Source(labels[i], names, mean, std, images[i]) for name, i in at.items()}
    per_class = ", ".join(f"{count} of each class for {name}" for name, count in DIGITS_PER_CLASS.items())
    return Splits(**sources, held_out=f"{per_class}, by chance (config.data.split_seed)")


def cifar_lt(data) -> Splits:
    """CIFAR-10 or CIFAR-100, cut as LDAM-DRW cuts it.

    The test set stays whole, unless `data.validation_per_class` images of each class are set apart from it for
    validation: they are then no part of the test.
    """
    (rows, labels), (test_rows, test_labels), names = cifar.read(data.source, data.dir, data.download)
    chosen = long_tailed(labels, len(names), data)
    rows, labels = rows[chosen], labels[chosen]
    black = np.flatnonzero(~rows.any(axis=1))
    if len(black):
        raise UserError(
            f"{len(black)} of the {len(chosen)} chosen training images are all black (the first is image "
            f"{chosen[black[0]]}): the files under {search_path(data.dir)} are not complete for "
            f"imbalance {data.imbalance:g}, profile {data.profile}, cut_seed {data.cut_seed}"
        )
    held = held_out(test_labels, len(names), data.validation_per_class, data.split_seed)
    held_out_of_test = f"{data.validation_per_class} test images of each class for validation, by chance (split_seed)"
    mean, std = np.float32(cifar.MEAN), np.float32(cifar.STD)

    def source(rows, labels):
        return Source(labels, names, mean, std, cifar.to_images(rows))

    return Splits(
        train=source(rows, labels),
        validation=source(test_rows[held], test_labels[held]) if held.any() else None,
        test=source(test_rows[~held], test_labels[~held]),
        held_out=held_out_of_test if held.any() else "",
    )


def arrays(data) -> Splits:
    """Any images that fit in memory, from one .npz file.

    It holds `train_images` uint8[N, H, W] or [N, H, W, C], `train_labels` int[N], `test_images`,
    `test_labels`, and may hold `validation_images`, `validation_labels` and `class_names`. Images with 1 to 4 channels
    in front, [N, C, H, W], are turned, and the log says so.
    """
    path = data.file
    if not path:
        raise UserError("no data file given; name the .npz by --config.data.file=FILE.npz")
    known = [f"{s}_{what}" for s in ("train", "validation", "test") for what in ("images", "labels")] + ["class_names"]
    for name in sorted(set(array_names(path)) - set(known)):  # whatever these hold, they are not read
        _log.warning("%s in %s is ignored%s", name, path, did_you_mean(name, sorted(known)))
    found = read_arrays(path, tuple(known), limit=64 * GIB)
    given = [name for name in ("validation_images", "validation_labels") if name in found]
    splits = [s for s in ("train", "validation", "test") if s != "validation" or given]
    for name in (f"{split}_{what}" for split in splits for what in ("images", "labels")):
        if name not in found:
            raise UserError(f"{path} holds no array {name!r}; it must hold train_, test_ images and labels")
    images = {s: _as_images(found[f"{s}_images"], f"{s}_images in {path}") for s in splits}
    labels = {s: _as_labels(found[f"{s}_labels"], len(images[s]), f"{s}_labels in {path}") for s in splits}
    for split in splits:
        if images[split].shape[1:] != images["train"].shape[1:]:
            raise UserError(
                f"{split}_images in {path} have shape {images[split].shape[1:]} and train_images "
                f"{images['train'].shape[1:]}; all must be of one size"
            )
    if "class_names" in found:
        names = names_of(found["class_names"], f"class_names in {path}")
    else:
        # Asked before a name is made for each: a label may be 10**9 by mistake.
        classes = 1 + max(int(labels[s].max()) for s in splits)
        missing = np.setdiff1d(np.arange(min(classes, len(labels["train"]) + 1)), labels["train"])
        if len(missing):
            there = {s: int((labels[s] == missing[0]).sum()) for s in splits if s != "train"}
            seen = "".join(f"; {count} {s} images have it" for s, count in there.items() if count)
            raise UserError(
                f"no training image in class {missing[0]} in {path}{seen}; its labels go from 0 to {classes - 1}"
            )
        names = tuple(str(c) for c in range(classes))
    for split in splits:
        try:
            priors.class_counts(labels[split], len(names))
        except UserError as error:
            raise UserError(f"{split}_labels in {path}: {error}") from None
    if data.imbalance != 1:
        chosen = long_tailed(labels["train"], len(names), data)
        images["train"], labels["train"] = images["train"][chosen], labels["train"][chosen]
    mean, std = _statistics(images["train"])
    of = {split: Source(labels[split], names, mean, std, images[split]) for split in splits}
    return Splits(of["train"], of.get("validation"), of["test"])


def _statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, of pixels / 255; a flat channel counts as one grey level."""
    # By histograms, block by block: exact, and without a copy of all images in floats.
    histograms = np.zeros((images.shape[-1], 256))
    for start in range(0, len(images), 1024):
        for channel, histogram in enumerate(histograms):
            histogram += np.bincount(images[start : start + 1024, ..., channel].ravel(), minlength=256)
    values, shares = np.arange(256.0), histograms / histograms.sum(axis=1, keepdims=True)
    mean = shares @ values
    std = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(axis=1))
    return (mean / 255).astype(np.float32), (np.maximum(std, 1) / 255).astype(np.float32)


def _as_images(array: np.ndarray, what: str) -> np.ndarray:
    """Return images uint8[N, H, W, C] of what may be [N, H, W], or [N, C, H, W], which is said."""
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or 0 in array.shape:
        raise UserError(f"{what} is {array.dtype}{array.shape}; it must be uint8[N,H,W] or uint8[N,H,W,C] with N > 0")
    if array.ndim == 3:
        return array[..., None]
    _, first, height, last = array.shape
    if last <= _CHANNELS or first >= min(height, last):
        return array  # many channels behind are no mistake where the images are as high as wide
    if first > _CHANNELS:
        raise UserError(
            f"{what} is uint8{array.shape}, which looks like {first} channels in front; they must be behind, "
            f"[N,H,W,C]: numpy.moveaxis(images, 1, -1)"
        )
    _log.warning("%s is uint8%s: read as %d channels in front, and turned to [N,H,W,C]", what, array.shape, first)
    return np.ascontiguousarray(np.moveaxis(array, 1, -1))


def _as_labels(array: np.ndarray, length: int, what: str) -> np.ndarray:
    if array.dtype.kind not in "iu" or array.shape != (length,):
        raise UserError(f"{what} is {array.dtype}{array.shape}; it must be int[{length}], one label an image")
    if array.min() < 0 or array.max() > np.iinfo(np.int32).max:
        raise UserError(
            f"{what} holds the label {array.min() if array.min() < 0 else array.max()}; classes count from 0"
        )
    return array.astype(np.int32)


_FIELDS = {  # beside the usual
    "cifar10": ("dir", "download", "validation_per_class"),
    "cifar100": ("dir", "download", "validation_per_class"),
    "arrays": ("file",),
    "photographs": photographs.FIELDS,
}
SOURCES = {
    "digits": digits,
    "cifar10": cifar_lt,
    "cifar100": cifar_lt,
    "arrays": arrays,
    "photographs": photographs.photographs,
}
