"""Passes over all encoded images of a source, decoded whole and small, by threads."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from unimix_jax.data import decode
from unimix_jax.data.types import Source
from unimix_jax.data.views import Reading, decoded_image
from unimix_jax.data.workers import cores

_SIDE = 32  # pixels
_BLOCK = 256  # images that a thread decodes at a time


def thumbnails(source: Source, reading: Reading) -> np.ndarray:
    """Return all images of a source at 32 x 32 pixels, to find those that look alike.

    Args:
      source: with names, not images.
      reading: how; with `skip_unreadable` an image that cannot be read is black.

    Returns:
      uint8[N, 32, 32, 3].

    Raises:
      UserError: an image cannot be read.
    """

    def thumbnail(position: int) -> np.ndarray:
        image = decoded_image(source, position, _whole, _SIDE, reading)
        return np.zeros((_SIDE, _SIDE, 3), np.uint8) if image is None else image

    with ThreadPoolExecutor(reading.threads or None) as pool:
        return np.stack(list(pool.map(thumbnail, range(len(source.labels)))))


def unreadable(source: Source, reading: Reading, report: Callable[[int], None] | None = None) -> np.ndarray:
    """Decode every image of a source once, and return the positions of those that cannot be read.

    Args:
      source: with names, not images.
      reading: how.
      report: called with the number of images done so far, now and then; an exception of it ends the pass.

    Returns:
      int64[M], ascending.
    """
    reading = reading._replace(skip_unreadable=True)

    def unreadable_of(positions: range) -> list[int]:
        return [i for i in positions if decoded_image(source, i, _whole, _SIDE, reading) is None]

    total, unreadable_positions = len(source.labels), []
    with ThreadPoolExecutor(reading.threads or cores()) as pool:
        blocks = [range(start, min(start + _BLOCK, total)) for start in range(0, total, _BLOCK)]
        try:
            for block, part in zip(blocks, pool.map(unreadable_of, blocks), strict=True):
                unreadable_positions += part
                if report:
                    report(block.stop)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return np.array(unreadable_positions, np.int64)


def _whole(width: int, height: int) -> decode.Box:
    return 0, 0, width, height
