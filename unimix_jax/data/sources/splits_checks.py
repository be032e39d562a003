"""Checks of what a user's source returns, so that no batch meets an array of another form. numpy only."""

from typing import Any, NoReturn

import numpy as np

from unimix_jax.data.types import Source, Splits
from unimix_jax.errors import UserError


def check(splits: Any, name: str) -> None:
    """Refuse splits that cannot be trained on.

    Args:
      splits: what the source returns.
      name: of the source, "module:function".

    Raises:
      UserError: the first thing that is not as `data.types` says, and how it must be.
    """
    if not isinstance(splits, Splits):
        _refuse(name, type(splits).__name__, "unimix_jax.data.types.Splits")
    parts = {"train": splits.train, "test": splits.test}
    if splits.validation is not None:
        parts["validation"] = splits.validation
    for split, source in parts.items():
        if not isinstance(source, Source):
            _refuse(name, f"{type(source).__name__} as {split}", "unimix_jax.data.types.Source")
        _check_source(source, split, name)
    for split, source in parts.items():
        if tuple(source.class_names) != tuple(splits.train.class_names):
            _refuse(name, f"other class names for {split} than for train", "the same in all splits")
        here, trained = (None if s.images is None else s.images.shape[1:] for s in (source, splits.train))
        if here != trained:
            one, other = ("encoded images" if shape is None else f"images {shape}" for shape in (here, trained))
            _refuse(name, f"{one} for {split} and {other} for train", "one form in all splits")


def _refuse(name: str, what: str, instead: str) -> NoReturn:
    raise UserError(f"the data source {name} returns {what}; it must return {instead}")


def _check_source(source: Source, split: str, name: str) -> None:
    """Refuse a split whose parts do not go together."""
    names, labels, images = source.class_names, source.labels, source.images
    if not isinstance(names, tuple | list) or not all(isinstance(each, str) for each in names):
        _refuse(name, f"class names of {split} that are no tuple of texts", "the K names of classes")
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        _refuse(name, f"labels of {split} that are {_form(labels)}", "integers [N]")
    if not len(labels):
        _refuse(name, f"no image for {split}", "at least one for each split")
    if labels.min() < 0 or labels.max() >= len(names):
        some = f"labels {labels.min()}..{labels.max()} for {split}"
        _refuse(name, some, f"labels in 0..{len(names) - 1}, for it names {len(names)} classes")
    if (images is None) == (source.names is None):
        both = "neither images nor names" if images is None else "both images and names"
        _refuse(name, f"{both} for {split}", "one of them")
    if images is not None and (not isinstance(images, np.ndarray) or images.ndim != 4 or images.dtype != np.uint8):
        _refuse(name, f"images of {split} that are {_form(images)}", "uint8 [N, H, W, C] in 0..255")
    count = len(source.names if images is None else images)
    if count != len(labels):
        _refuse(name, f"{count} images and {len(labels)} labels for {split}", "as many of each")
    channels = 3 if images is None else images.shape[3]
    for what in ("mean", "std"):
        values = np.asarray(getattr(source, what))
        if values.shape != (channels,) or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
            _refuse(name, f"{values.tolist()} as {what} of {split}", f"a finite number for each of {channels} channels")
    if (np.asarray(source.std) <= 0).any():
        _refuse(name, f"{np.asarray(source.std).tolist()} as std of {split}", "numbers above 0")


def _form(values: Any) -> str:
    if isinstance(values, np.ndarray):
        return f"{values.dtype} {list(values.shape)}"
    return type(values).__name__
