"""The types of the data: the images of a split, the splits of a data set, and the examples of a batch. numpy only."""

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from unimix_jax import priors
from unimix_jax.data.readers import read_encoded


class Source(NamedTuple):
    """The images of one split: either all pixels in memory, or the names of encoded images."""

    labels: np.ndarray  # int32[N]
    class_names: tuple[str, ...]  # K
    mean: np.ndarray  # float32[C], of pixels / 255
    std: np.ndarray  # float32[C]
    images: np.ndarray | None = None  # uint8[N, H, W, C], where all fit into memory; otherwise:
    names: tuple[str, ...] | None = None  # N encoded images: paths below `root`, or names of records
    root: str = ""
    record: Callable[[int], bytes] | None = None  # position -> encoded image, where the names are not paths

    def path_of(self, position: int) -> str:
        """Return the path of an encoded image, or the name of its record, for messages.

        Args:
          position: of the image, below N.
        """
        return os.path.join(self.root, self.names[position])

    def read(self, position: int) -> bytes:
        """Return an encoded image as it is stored.

        Args:
          position: of the image, below N.

        Returns:
          The content of its file or record.

        Raises:
          OSError: the file cannot be read.
        """
        return self.record(position) if self.record else read_encoded(self.path_of(position))

    def take(self, positions: np.ndarray) -> "Source":
        """Return the source of some of the examples.

        Args:
          positions: int[M], in the order that the new source has.
        """
        images = None if self.images is None else self.images[positions]
        names = None if self.names is None else tuple(self.names[i] for i in positions.tolist())
        record = None if self.record is None else _TakenRecords(self.record, positions)
        return self._replace(labels=self.labels[positions], images=images, names=names, record=record)


class _TakenRecords(NamedTuple):
    """Some of the records of a source; a tuple, because worker processes receive it."""

    record: Callable[[int], bytes]
    positions: np.ndarray

    def __call__(self, position: int) -> bytes:
        return self.record(int(self.positions[position]))


class Splits(NamedTuple):
    """The training, validation and test images of a data set; no image is in two of them."""

    train: Source
    validation: Source | None
    test: Source
    held_out: str = ""  # which images were set apart for which split, in words; "" if the data has its own splits
    unreadable: int | None = None  # training images left out because they cannot be read; None if none was examined

    @property
    def counts(self) -> np.ndarray:
        """Training images of each class, int64[K]."""
        return priors.class_counts(self.train.labels, len(self.train.class_names))

    @property
    def evaluated(self) -> dict[str, Source]:
        """The splits that are predicted, by name, validation first."""
        return {name: s for name, s in (("validation", self.validation), ("test", self.test)) if s is not None}


class BatchIndices(NamedTuple):
    """The examples of a batch: positions in the data set, before any pixel is read."""

    index: np.ndarray  # int64[B]
    view: np.ndarray  # int32[B], the example's number in the global batch
    partner: np.ndarray | None = None  # int64[B], the second image of each mixed pair
    partner_view: np.ndarray | None = None  # int32[B]


class Batch(NamedTuple):
    """The images and labels of a step, before augmentation, with their partners where images are mixed."""

    image: np.ndarray  # uint8[B, H, W, C]
    label: np.ndarray  # int32[B]
    view: np.ndarray  # int32[B]
    partner_image: np.ndarray | None = None  # uint8[B, H, W, C]
    partner_label: np.ndarray | None = None  # int32[B]
    partner_view: np.ndarray | None = None  # int32[B]
