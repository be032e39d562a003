"""Data sources: a module for each form of data, with a function that reads it and returns `Splits`.

A new source is such a function, an entry of `SOURCES`, its fields in `config.fields`, and a config.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from unimix_jax import priors, registry
from unimix_jax.config import fields
from unimix_jax.data.sources import cifar, digits, npz, photographs, splits_checks
from unimix_jax.data.types import Splits
from unimix_jax.errors import UserError, described, one_of

if TYPE_CHECKING:
    from ml_collections import ConfigDict


# Each is called with the group `config.data`; `config.fields` declares the fields that it reads.
SOURCES: dict[str, Callable[["ConfigDict"], Splits]] = {
    "digits": digits.read,
    "cifar10": cifar.read,
    "cifar100": cifar.read,
    "arrays": npz.read,
    "photographs": photographs.read,
}


def load(data: "ConfigDict") -> Splits:
    """Read the data that a config describes.

    Args:
      data: the group `config.data`; `data.source` is a name in `SOURCES`, or "module:function" of a user's, which is
        called with the group, too; the other fields are what that source reads.

    Returns:
      The splits, of at least two classes that all have training images.

    Raises:
      UserError: the data is missing or damaged, has one class only, or a class has no training image.
    """
    if ":" not in data.source:
        one_of("data source (config.data.source)", data.source, SOURCES)
    read = registry.resolve("source", data.source)
    for field in fields.of_source(data.source):
        if field.sources and (name := field.name.removeprefix("data.")) not in data:
            raise UserError(f"config.data has no field {name!r}, which the source {data.source!r} reads; see configs/")
    splits = read(data) if data.source in SOURCES else _read_by_user(read, data)
    check_classes(splits)
    return splits


def _read_by_user(read: Callable, data: "ConfigDict") -> Splits:
    """Return what a user's source reads, after a check that it can be trained on."""
    try:
        splits = read(data)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the source is the user's, and may raise anything
        raise UserError(f"the data source {data.source} fails: {described(error)}") from error
    splits_checks.check(splits, data.source)
    if splits.train.images is None and "image_size" not in data:
        raise UserError(
            f"the data source {data.source} returns encoded images, which need the fields of photographs: call "
            "use_source(config, 'photographs') before config.data.source is set"
        )
    return splits


def check_classes(splits: Splits) -> None:
    """Refuse data on which no classifier can be trained.

    Args:
      splits: of any source.

    Raises:
      UserError: there is one class only, or classes have no training image; the message counts their images in the
        other splits.
    """
    names, counts = splits.train.class_names, splits.counts
    if len(names) < 2:
        only = f"only one class, {names[0]!r}" if names else "no class"
        raise UserError(f"the data has {only}; a classifier needs images of two classes at least")
    empty = np.flatnonzero(counts == 0).tolist()
    if not empty:
        return
    shown = ", ".join(f"{c} ({names[c]})" for c in empty[:3])
    more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
    elsewhere = ""
    for split, source in splits.evaluated.items():
        evaluated = priors.class_counts(source.labels, len(names))
        some = [f"{evaluated[c]} of {names[c]}" for c in empty if evaluated[c]]
        if some:
            elsewhere += f", but {split} has {', '.join(some[:3])}{', ...' if len(some) > 3 else ''}"
    raise UserError(f"no training image in class {shown}{more}{elsewhere}; leave the class out or give it images")
