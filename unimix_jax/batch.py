"""The arrays of a training batch."""

from typing import NamedTuple

import numpy as np


class Picks(NamedTuple):
    """Which examples make a batch: positions in the data set, before any pixel is touched."""

    index: np.ndarray  # int64[B]
    view: np.ndarray  # int32[B], the example's number in the global batch
    partner: np.ndarray | None = None  # int64[B], the second image of each mixed pair
    partner_view: np.ndarray | None = None  # int32[B]


class Batch(NamedTuple):
    """The images and labels of a step, raw, with their partners where images are mixed."""

    image: np.ndarray  # uint8[B, H, W, C]
    label: np.ndarray  # int32[B]
    view: np.ndarray  # int32[B]
    partner_image: np.ndarray | None = None  # uint8[B, H, W, C]
    partner_label: np.ndarray | None = None  # int32[B]
    partner_view: np.ndarray | None = None  # int32[B]
