"""Load batches by their indices: rows of arrays, views of encoded images; a thread loads ahead of the device."""

import collections
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from unimix_jax.data.sampling import ClassIndex
from unimix_jax.data.types import Batch, BatchIndices, Source
from unimix_jax.data.views import Reading, View, cached_indices, evaluated_view, partner_is_among, training_view
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
    rows: range,
    partners: bool,
    seed: int,
    reading: Reading,
) -> Iterator[tuple[Batch, tuple[str, ...]]]:
    """Read rows of the batches of some steps from encoded images: pixels are a function of (seed, step, view) alone.

    Args:
      source: with names, not images.
      class_index: `sorted_by_class` of its labels.
      indices_of: called as indices_of(step=...).
      steps: consecutive.
      rows: of each batch, those of this process.
      partners: whether some may have to be decoded: they come from outside of the batch, or from other rows of it.
      seed: of the crops.
      reading: how.

    Yields:
      These rows of the batch, and the images that could not be read and were replaced by others of their class.

    Raises:
      UserError: an image cannot be read, and is not to be replaced.
    """
    view_at = functools.partial(
        training_view,
        source=source,
        class_index=class_index,
        indices_of=indices_of,
        rows=rows,
        partners=partners,
        seed=seed,
        reading=reading,
    )
    size, first, views = len(rows), rows.start, len(rows) * (2 if partners else 1)
    all_views = _read(view_at, range(steps.start * views, steps.stop * views), reading, views)
    for step in steps:
        step_views = [next(all_views) for _ in range(views)]
        indices = cached_indices(indices_of, step)
        here = partner_is_among(indices, rows)[first : rows.stop] if indices.partner is not None else None
        indices = rows_of(indices, rows)
        image = np.stack([view.image for view in step_views[:size]])
        batch = Batch(image, source.labels[indices.index], indices.view)
        if here is not None:
            partner = [
                image[slot - first] if here[i] else step_views[size + i].image
                for i, slot in enumerate(indices.partner_view.tolist())
            ]
            batch = batch._replace(
                partner_image=np.stack(partner),
                partner_label=source.labels[indices.partner],
                partner_view=indices.partner_view,
            )
        yield batch, tuple(name for view in step_views for name in view.unreadable)


def rows_of(indices: BatchIndices, rows: range) -> BatchIndices:
    """Return some rows of a batch's indices; views keep their numbers in the whole batch."""
    return BatchIndices(*(None if of is None else of[rows.start : rows.stop] for of in indices))


def blocks(source: Source, size: int, reading: Reading | None = None, rows: range | None = None) -> Iterator[Block]:
    """Go through a split once, in order; the last block is filled up with black images.

    Args:
      source: with images, or with names and `reading`.
      size: images in a block.
      reading: how encoded images are read.
      rows: of each block, those of this process; None for all.

    Yields:
      Images uint8[rows, H, W, C]; whether each stands for an example, bool[rows]; the names of those that could not be
      read.

    Raises:
      UserError: an image cannot be read, and is not to be left out.
    """
    rows = rows or range(size)
    total = len(source.labels)
    positions = [
        range(min(start + rows.start, total), min(start + rows.stop, total)) for start in range(0, total, size)
    ]
    if source.names is None:
        of_part = _array_parts(source)
    else:
        row_of = functools.partial(_row_of_block, rows=rows, size=size)
        of_part = _encoded_parts(source, row_of, sum(map(len, positions)), len(rows), reading)
    for part in positions:
        images, present, unreadable = of_part(part)
        missing = len(rows) - len(part)
        filled = np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)]) if missing else images
        yield filled, np.concatenate([present, np.zeros(missing, bool)]), unreadable


def _array_parts(source: Source) -> Callable[[range], Block]:
    return lambda part: (source.images[part.start : part.stop], np.ones(len(part), bool), ())


def _row_of_block(number: int, rows: range, size: int) -> int:
    """Return the position of an image by its number among the rows of a process, of all blocks."""
    block, row = divmod(number, len(rows))
    return block * size + rows.start + row


def _evaluated(number: int, row_of: Callable[[int], int], source: Source, reading: Reading) -> View:
    return evaluated_view(row_of(number), source=source, reading=reading)


def _encoded_parts(
    source: Source, row_of: Callable[[int], int], total: int, ahead: int, reading: Reading
) -> Callable[[range], Block]:
    view_at = functools.partial(_evaluated, row_of=row_of, source=source, reading=reading)
    views = _read(view_at, range(total), reading, ahead)
    black = np.zeros((0, reading.size, reading.size, 3), np.uint8)

    def read(part: range) -> Block:
        of_part = list(itertools.islice(views, len(part)))
        present = np.array([view.image.size > 0 for view in of_part], bool)
        images = [
            view.image[None] if view.image.size else np.zeros((1, *black.shape[1:]), np.uint8) for view in of_part
        ]
        return np.concatenate([black, *images]), present, tuple(n for view in of_part for n in view.unreadable)

    return read


def _read(view_at: Callable[[int], View], positions: range, reading: Reading, ahead: int) -> Iterator[View]:
    return in_order(view_at, positions, threads=reading.threads, workers=reading.workers, ahead=ahead)
