"""Single encoded images to pixels: the view of a training step, the view of an evaluation, and how they are read."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from unimix_jax.data import decode
from unimix_jax.data.sampling import ClassIndex
from unimix_jax.data.types import BatchIndices, Source
from unimix_jax.errors import UserError


class Reading(NamedTuple):
    """Options of reading and decoding images: fields of `config.data`."""

    size: int  # of a side
    resize: int  # of the shorter side, of which an evaluation takes the centre
    min_area: float  # smallest share of an image that a random crop takes
    skip_unreadable: bool  # replace an image that cannot be read, or leave it out of an evaluation
    threads: int  # 0 for one a core
    workers: int  # processes; 0 for threads of this one
    max_megapixels: float = decode.MAX_MEGAPIXELS  # of an image; a larger one counts as unreadable


class View(NamedTuple):
    """One decoded image of a batch."""

    image: np.ndarray  # uint8[size, size, 3]; uint8[0] if there is nothing to decode, or nothing could be decoded
    unreadable: tuple[str, ...]  # images that could not be read in its place


_NOTHING = np.zeros(0, np.uint8)  # not None, which grain leaves out


def training_view(
    position: int,
    *,
    source: Source,
    class_index: ClassIndex,
    indices_of: Callable[..., BatchIndices],
    rows: range,
    partners: bool,
    seed: int,
    reading: Reading,
) -> View:
    """Decode one image of a training step, cropped at random.

    Args:
      position: step * views + the number of the view among those of these rows: images first, then partners.
      source: of the training images.
      class_index: `sorted_by_class` of its labels.
      indices_of: called as indices_of(step=...).
      rows: of the batch, those of this process.
      partners: whether partners are among the views.
      seed: of the crops.
      reading: how.

    Returns:
      The view; no image for a partner that is among these rows itself.

    Raises:
      UserError: the image cannot be read and is not to be replaced, or no image of its class can be read.
    """
    step, number = divmod(position, len(rows) * (2 if partners else 1))
    indices, slot = cached_indices(indices_of, step), rows.start + number % len(rows)
    if number < len(rows):
        index, view = indices.index[slot], indices.view[slot]
    elif partner_is_among(indices, rows)[slot]:
        return View(_NOTHING, ())
    else:
        index, view = indices.partner[slot], indices.partner_view[slot]
    box_of = functools.partial(decode.random_box, seed=seed, step=step, view=int(view), area=(reading.min_area, 1.0))
    image = decoded_image(source, index, box_of, reading.size, reading)
    if image is not None:
        return View(image, ())
    # The next image of its class replaces it.
    label, unreadable = source.labels[index], [source.path_of(index)]
    members = class_index.order[class_index.first[label] : class_index.first[label] + class_index.counts[label]]
    for member in np.roll(members, -int(np.searchsorted(members, index)))[1:]:
        image = decoded_image(source, member, box_of, reading.size, reading)
        if image is not None:
            return View(image, tuple(unreadable))
        unreadable.append(source.path_of(member))
    raise UserError(f"none of the {len(members)} images of class {source.class_names[label]!r} can be read")


def evaluated_view(position: int, *, source: Source, reading: Reading) -> View:
    """Decode the centre of one image.

    Args:
      position: of the image.
      source: of the images.
      reading: how.

    Returns:
      The view; no image if it cannot be read and is to be left out.

    Raises:
      UserError: the image cannot be read and is not to be left out.
    """
    box_of = functools.partial(decode.centre_box, size=reading.size, resize=reading.resize)
    image = decoded_image(source, position, box_of, reading.size, reading)
    return View(_NOTHING, (source.path_of(position),)) if image is None else View(image, ())


def decoded_image(
    source: Source, position: int, box_of: Callable[[int, int], decode.Box], size: int, reading: Reading
) -> np.ndarray | None:
    """Read and decode one image.

    Args:
      source: of the images.
      position: of the image.
      box_of: (width, height) -> the box to decode.
      size: of a side of the result.
      reading: how.

    Returns:
      uint8[size, size, 3]; None if the image cannot be read and `reading.skip_unreadable` is set.

    Raises:
      UserError: the image cannot be read.
    """
    try:
        return decode.decoded(source.read(int(position)), box_of, size, reading.max_megapixels)
    except Exception as error:  # damage is raised as nearly any type
        if reading.skip_unreadable:
            return None
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(
            f"cannot read the image {source.path_of(position)} ({reason}); repair or remove it, or skip "
            "such images by --config.data.skip_unreadable"
        ) from None


@functools.lru_cache(maxsize=16)
def cached_indices(indices_of: Callable[..., BatchIndices], step: int) -> BatchIndices:
    """Return indices_of(step=step), computed once for all views of a step.

    Args:
      indices_of: a function that can be hashed, such as a partial one.
      step: from 0.
    """
    return indices_of(step=step)


def partner_is_among(indices: BatchIndices, rows: range) -> np.ndarray:
    """Return which partners are views of these rows of the batch itself.

    Args:
      indices: of a batch with partners.
      rows: of the batch.

    Returns:
      bool[B].
    """
    size = len(indices.index)
    slots = np.minimum(indices.partner_view, size - 1)
    here = (indices.partner_view >= rows.start) & (indices.partner_view < rows.stop)
    return here & (indices.partner_view < size) & (indices.index[slots] == indices.partner)
