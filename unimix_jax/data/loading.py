"""Load batches by their indices: rows of arrays, views of encoded images; a thread loads ahead of the device."""

import collections
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from unimix_jax.data.sampling import ClassIndex
from unimix_jax.data.types import Batch, BatchIndices, Source
from unimix_jax.data.views import Reading, View, cached_indices, evaluated_view, partner_is_in_batch, training_view
from unimix_jax.data.workers import in_order

Block = tuple[np.ndarray, np.ndarray, tuple[str, ...]]  # images, which of them are examples, names of unreadable ones


def gather(images: np.ndarray, labels: np.ndarray, indices: BatchIndices) -> Batch:
    """Collect the rows of a batch, from numpy arrays in the host's memory and from traced arrays alike.

    Args:
      images: uint8[N, H, W, C].
      labels: int32[N].
      indices: positions below N.

    Returns:
      The images and labels at these positions, and at those of the partners.
    """
    batch = Batch(images[indices.index], labels[indices.index], indices.view)
    if indices.partner is None:
        return batch
    return batch._replace(
        partner_image=images[indices.partner], partner_label=labels[indices.partner], partner_view=indices.partner_view
    )


def prefetch(iterable: Iterable, depth: int = 2) -> Iterator:
    """Yield the items of an iterable in order, computed by one thread up to `depth` items ahead.

    An exception is raised at its item's turn. Closing the iterator ends the thread and closes the iterable.

    Args:
      iterable: used by the thread alone.
      depth: items that are ready before their turn.

    Yields:
      The items.
    """
    items, end = iter(iterable), object()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        ahead = collections.deque(pool.submit(next, items, end) for _ in range(depth + 1))
        try:
            while (item := ahead.popleft().result()) is not end:
                ahead.append(pool.submit(next, items, end))
                yield item
        finally:
            for future in ahead:
                future.cancel()
            if hasattr(items, "close"):
                pool.submit(items.close).result()


def batches(
    source: Source,
    class_index: ClassIndex,
    indices_of: Callable[..., BatchIndices],
    steps: range,
    *,
    views: int,
    seed: int,
    reading: Reading,
) -> Iterator[tuple[Batch, tuple[str, ...]]]:
    """Read the batches of some steps from encoded images: pixels are a function of (seed, step, view) alone.

    Args:
      source: with names, not images.
      class_index: `sorted_by_class` of its labels.
      indices_of: called as indices_of(step=...).
      steps: consecutive.
      views: images to decode in a step, at most: B, or 2 * B where partners come from outside of the batch.
      seed: of the crops.
      reading: how.

    Yields:
      The batch, and the images that could not be read and were replaced by others of their class.

    Raises:
      UserError: an image cannot be read, and is not to be replaced.
    """
    view_at = functools.partial(
        training_view,
        source=source,
        class_index=class_index,
        indices_of=indices_of,
        views=views,
        seed=seed,
        reading=reading,
    )
    all_views = _read(view_at, range(steps.start * views, steps.stop * views), reading, views)
    for step in steps:
        step_views = [next(all_views) for _ in range(views)]
        indices = cached_indices(indices_of, step)
        size = len(indices.index)
        image = np.stack([view.image for view in step_views[:size]])
        batch = Batch(image, source.labels[indices.index], indices.view)
        if indices.partner is not None:
            in_batch = partner_is_in_batch(indices)
            partner = [
                image[slot] if in_batch[i] else step_views[size + i].image
                for i, slot in enumerate(indices.partner_view.tolist())
            ]
            batch = batch._replace(
                partner_image=np.stack(partner),
                partner_label=source.labels[indices.partner],
                partner_view=indices.partner_view,
            )
        yield batch, tuple(name for view in step_views for name in view.unreadable)


def blocks(source: Source, size: int, reading: Reading | None = None) -> Iterator[Block]:
    """Go through a split once, in order; the last block is filled up with black images.

    Args:
      source: with images, or with names and `reading`.
      size: images in a block.
      reading: how encoded images are read.

    Yields:
      Images uint8[size, H, W, C]; whether each stands for an example, bool[size]; the names of those that could not be
      read.

    Raises:
      UserError: an image cannot be read, and is not to be left out.
    """
    parts = _array_parts(source, size) if source.names is None else _encoded_parts(source, size, reading)
    for rows, present, unreadable in parts:
        missing = size - len(rows)
        filled = np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)])
        yield filled, np.concatenate([present, np.zeros(missing, bool)]), unreadable


def _array_parts(source: Source, size: int) -> Iterator[Block]:
    for start in range(0, len(source.labels), size):
        rows = source.images[start : start + size]
        yield rows, np.ones(len(rows), bool), ()


def _encoded_parts(source: Source, size: int, reading: Reading) -> Iterator[Block]:
    view_at = functools.partial(evaluated_view, source=source, reading=reading)
    views = _read(view_at, range(len(source.labels)), reading, size)
    black = np.zeros((reading.size, reading.size, 3), np.uint8)
    while part := list(itertools.islice(views, size)):
        present = np.array([view.image.size > 0 for view in part])
        rows = np.stack([view.image if view.image.size else black for view in part])
        yield rows, present, tuple(name for view in part for name in view.unreadable)


def _read(view_at: Callable[[int], View], positions: range, reading: Reading, ahead: int) -> Iterator[View]:
    return in_order(view_at, positions, threads=reading.threads, workers=reading.workers, ahead=ahead)
