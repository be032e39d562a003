"""scikit-learn's handwritten digits: real images that need no download. Touches files."""

import gzip
import importlib.util
import pathlib
from typing import TYPE_CHECKING

import numpy as np

from unimix_jax.data import longtail
from unimix_jax.data.sources.statistics import mean_and_std
from unimix_jax.data.types import Source, Splits
from unimix_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

PER_CLASS = {"test": 50, "validation": 25}  # images held out of each class
_CLASSES = 10


def read(data: "ConfigDict") -> Splits:
    """Read the 1,797 digits, 8 x 8 grey.

    50 images of each class are held out for the test and 25 for validation. The long-tailed training set is a subset
    of the others.

    Args:
      data: the group `config.data`, with `split_seed`, `profile`, `imbalance`, `subset_seed`.

    Returns:
      The splits.

    Raises:
      UserError: scikit-learn is not installed, or the imbalance leaves a class without a training image.
    """
    table = _table()
    images = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = table[:, 64]
    positions = longtail.balanced_splits(labels, _CLASSES, PER_CLASS, data.split_seed)
    train = positions["train"]
    positions["train"] = train[longtail.subset_of_balanced(labels[train], _CLASSES, data)]
    mean, std = mean_and_std(images[positions["train"]])
    names = tuple(str(c) for c in range(_CLASSES))
    sources = {name: Source(labels[i], names, mean, std, images[i]) for name, i in positions.items()}
    per_class = ", ".join(f"{count} of each class for {name}" for name, count in PER_CLASS.items())
    return Splits(**sources, held_out=f"{per_class}, by chance (config.data.split_seed)")


def _table() -> np.ndarray:
    """Return int32[1797, 65]: 64 pixels in 0..16, and the label."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None:
        raise UserError("the digits come with scikit-learn, which is not installed: pip install scikit-learn")
    path = pathlib.Path(spec.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    if path.is_file():  # reading the file alone saves the 1.4 s in which scikit-learn is imported
        with gzip.open(path, "rt") as file:
            return np.loadtxt(file, delimiter=",", dtype=np.int32)
    from sklearn import datasets

    return np.column_stack(datasets.load_digits(return_X_y=True)).astype(np.int32)
