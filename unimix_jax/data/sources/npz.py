"""Images that fit in memory, from one .npz file. Touches files."""

import logging
from typing import TYPE_CHECKING

import numpy as np

from unimix_jax import npz, priors
from unimix_jax.data import longtail
from unimix_jax.data.sources.statistics import mean_and_std
from unimix_jax.data.types import Source, Splits
from unimix_jax.errors import UserError, did_you_mean
from unimix_jax.storage import GIB

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_log = logging.getLogger(__name__)

_SPLITS = ("train", "validation", "test")
_ARRAYS = (*(f"{split}_{part}" for split in _SPLITS for part in ("images", "labels")), "class_names")
_LARGEST = 64 * GIB  # bytes of all arrays
_CHANNELS = 4  # the most that images usually have: grey, grey and alpha, RGB, RGBA


def read(data: "ConfigDict") -> Splits:
    """Read the images of an .npz file.

    It holds `train_images` uint8[N, H, W] or [N, H, W, C], `train_labels` int[N], `test_images` and `test_labels`, and
    may hold `validation_images`, `validation_labels` and `class_names`. Images with 1 to 4 channels in front,
    [N, C, H, W], are transposed, with a warning.

    Args:
      data: the group `config.data`, with `file`; with `profile` and `subset_seed` where `imbalance` is not 1.

    Returns:
      The splits.

    Raises:
      UserError: no file is named, it cannot be read, or an array is missing or has another type, shape or labels.
    """
    path = data.file
    if not path:
        raise UserError("no data file given; name the .npz by --config.data.file=FILE.npz")
    arrays = _arrays(path)
    splits = [s for s in _SPLITS if s != "validation" or {"validation_images", "validation_labels"} & arrays.keys()]
    for name in (f"{split}_{part}" for split in splits for part in ("images", "labels")):
        if name not in arrays:
            raise UserError(f"{path} holds no array {name!r}; it must hold train_, test_ images and labels")
    images = {s: _as_images(arrays[f"{s}_images"], f"{s}_images in {path}") for s in splits}
    labels = {s: _as_labels(arrays[f"{s}_labels"], len(images[s]), f"{s}_labels in {path}") for s in splits}
    for split in splits:
        if images[split].shape[1:] != images["train"].shape[1:]:
            raise UserError(
                f"{split}_images in {path} have shape {images[split].shape[1:]} and train_images "
                f"{images['train'].shape[1:]}; all must be of one size"
            )
    if "class_names" in arrays:
        names = npz.names_of(arrays["class_names"], f"class_names in {path}")
    else:
        names = _numbered_classes(labels, path)
    for split in splits:
        try:
            priors.class_counts(labels[split], len(names))
        except UserError as error:
            raise UserError(f"{split}_labels in {path}: {error}") from None
    if data.imbalance != 1:
        subset = longtail.subset_of_balanced(labels["train"], len(names), data)
        images["train"], labels["train"] = images["train"][subset], labels["train"][subset]
    mean, std = mean_and_std(images["train"])
    sources = {split: Source(labels[split], names, mean, std, images[split]) for split in splits}
    return Splits(sources["train"], sources.get("validation"), sources["test"])


def _arrays(path: str) -> dict[str, np.ndarray]:
    """Read the arrays that a source of images has, and warn of others."""
    for name in sorted(set(npz.array_names(path)) - set(_ARRAYS)):
        _log.warning("%s in %s is ignored%s", name, path, did_you_mean(name, sorted(_ARRAYS)))
    return npz.read_arrays(path, _ARRAYS, limit=_LARGEST)


def _numbered_classes(labels: dict[str, np.ndarray], path: str) -> tuple[str, ...]:
    """Return "0", "1", ... for all classes of labels by split; refuse a class without a training image."""
    # Checked before a name is made for each class: a label can be 10**9 by mistake.
    classes = 1 + max(int(array.max()) for array in labels.values())
    missing = np.setdiff1d(np.arange(min(classes, len(labels["train"]) + 1)), labels["train"])
    if len(missing):
        counts = {split: int((array == missing[0]).sum()) for split, array in labels.items() if split != "train"}
        elsewhere = "".join(f"; {count} {split} images have it" for split, count in counts.items() if count)
        raise UserError(
            f"no training image in class {missing[0]} in {path}{elsewhere}; its labels go from 0 to {classes - 1}"
        )
    return tuple(str(c) for c in range(classes))


def _as_images(array: np.ndarray, name: str) -> np.ndarray:
    """Return uint8[N, H, W, C] for [N, H, W, C] and [N, H, W], and for [N, C, H, W] with a warning."""
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or 0 in array.shape:
        raise UserError(f"{name} is {array.dtype}{array.shape}; it must be uint8[N,H,W] or uint8[N,H,W,C] with N > 0")
    if array.ndim == 3:
        return array[..., None]
    _, first, height, last = array.shape
    if last <= _CHANNELS or first >= min(height, last):
        return array  # the last axis may be long where the images are as high as wide
    if first > _CHANNELS:
        raise UserError(
            f"{name} is uint8{array.shape}, which looks like {first} channels in front; they must be behind, "
            f"[N,H,W,C]: numpy.moveaxis(images, 1, -1)"
        )
    _log.warning("%s is uint8%s: read as %d channels in front, and turned to [N,H,W,C]", name, array.shape, first)
    return np.ascontiguousarray(np.moveaxis(array, 1, -1))


def _as_labels(array: np.ndarray, length: int, name: str) -> np.ndarray:
    """Return int32[length] labels that are not negative."""
    if array.dtype.kind not in "iu" or array.shape != (length,):
        raise UserError(f"{name} is {array.dtype}{array.shape}; it must be int[{length}], one label an image")
    if array.min() < 0 or array.max() > np.iinfo(np.int32).max:
        raise UserError(
            f"{name} holds the label {array.min() if array.min() < 0 else array.max()}; classes count from 0"
        )
    return array.astype(np.int32)
