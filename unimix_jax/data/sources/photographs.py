"""Photographs in files: from list files, a folder with a sub-folder a class, or a prepared TFDS directory.

Only names and labels are read here; `data.decode` reads a photograph when a batch needs it.
"""

import logging
from typing import TYPE_CHECKING

import numpy as np

from unimix_jax.data import longtail
from unimix_jax.data.readers import search_path
from unimix_jax.data.sources import image_folder, list_file, listing_checks, tfds
from unimix_jax.data.sources.listing import classes_of
from unimix_jax.data.types import Source, Splits
from unimix_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_log = logging.getLogger(__name__)


def read(data: "ConfigDict") -> Splits:
    """Read the names and labels of photographs, in the form of data that the config names.

    `train_list`, and perhaps `validation_list` and `test_list`, are list files ("path label" a line) or iNaturalist's
    JSON, over the image root `dir`. Without them `dir` is a prepared TFDS directory, or a folder with a sub-folder for
    each class, or a folder with such folders under train/, val/ and test/. Without a test split one is held out by
    `split_seed`, stratified: `test_share` of each class, and `validation_share` for validation.

    Args:
      data: the group `config.data`.

    Returns:
      The splits.

    Raises:
      UserError: nothing is named, files are missing or damaged, or the splits contradict each other.
      OSError: a list cannot be read.
    """
    root = search_path(data.dir)
    mean, std = np.float32(data.mean), np.float32(data.std)
    if data.train_list:
        root, listings = list_file.read_all(root, data)
    elif named := [f"{split}_list" for split in ("validation", "test") if data[f"{split}_list"]]:
        raise UserError(f"config.data.{named[0]} goes with config.data.train_list, which is not given")
    elif not data.dir:
        raise UserError(
            "no photographs named: give a folder with a sub-folder a class by --config.data.dir=FOLDER, or list files "
            "by --config.data.train_list=FILE"
        )
    elif tfds.is_prepared(root):
        return complete(tfds.read(root, mean, std), data)
    else:
        listings = image_folder.read(root, layout=data.layout, skip_other_files=data.skip_other_files)
        listing_checks.check_contents_apart(root, listings)
    classes, names = classes_of(listings)
    sources = {}
    for split, listing in listings.items():
        labels = np.searchsorted(classes, listing.labels).astype(np.int32)
        sources[split] = Source(labels, names, mean, std, names=tuple(listing.names), root=str(root))
    return complete(sources, data)


def complete(sources: dict[str, Source], data: "ConfigDict") -> Splits:
    """Hold out the test and validation images that are missing, and choose the long-tailed training set.

    Args:
      sources: by split, with "train".
      data: the group `config.data`; an `imbalance` of 1 keeps all training images.

    Returns:
      The splits.

    Raises:
      UserError: there is no test split, and none can be held out; or a class would have no training image.
    """
    sources, held_out = dict(sources), ""
    train = sources["train"]
    if "test" not in sources:
        shares = {"test": data.test_share}
        if "validation" not in sources:
            shares["validation"] = data.validation_share
        positions = _held_out(train, shares, data.split_seed)
        sources |= {name: train.take(chosen) for name, chosen in positions.items() if len(chosen)}
        held_out = ", ".join(f"{len(positions[name])} images for {name}" for name in shares) + ", by chance"
    if data.imbalance != 1:
        full = sources["train"]
        sources["train"] = full.take(longtail.subset_of_skewed(full.labels, len(full.class_names), data))
    return Splits(sources["train"], sources.get("validation"), sources["test"], held_out)


def _held_out(train: Source, shares: dict[str, float], seed: int) -> dict[str, np.ndarray]:
    """Return the positions of each split, and warn of classes with too few images for a test image."""
    if not shares["test"] > 0:
        raise UserError("there is no test split and config.data.test_share is 0; name one or hold some images out")
    classes = len(train.class_names)
    positions = longtail.stratified_splits(train.labels, classes, shares, seed)
    if not len(positions["test"]):
        raise UserError("no class has images enough to hold one out for the test; name a test split")
    untested = sorted(set(range(classes)) - set(train.labels[positions["test"]].tolist()))
    if untested:
        shown = ", ".join(train.class_names[c] for c in untested[:3]) + (", ..." if len(untested) > 3 else "")
        _log.warning("%d classes have too few images to hold one out for the test: %s", len(untested), shown)
    return positions
