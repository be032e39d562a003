"""From picks to batches: gathering rows of arrays, grain over files, and a thread that does so ahead of the device."""

import collections
import functools
import itertools
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from unimix_jax import cli
from unimix_jax.batch import Batch, Picks
from unimix_jax.data import decode
from unimix_jax.data.sampling import ByClass
from unimix_jax.data.types import Source
from unimix_jax.errors import Failure, UserError

_log = logging.getLogger(__name__)
_PATIENCE = 10.0  # seconds without an image before it is said what is waited for; twice as many each time after
_LONGEST_PATIENCE = 300.0


def gather(images, labels, picks: Picks) -> Batch:
    """Collect the rows that `picks` names; numpy in the host's memory and traced arrays alike.

    Args:
      images: uint8[N, H, W, C].
      labels: int32[N].
      picks: positions below N.
    """
    batch = Batch(images[picks.index], labels[picks.index], picks.view)
    if picks.partner is None:
        return batch
    return batch._replace(
        partner_image=images[picks.partner], partner_label=labels[picks.partner], partner_view=picks.partner_view
    )


def prefetch(made: Iterable, depth: int = 2) -> Iterator:
    """Yield the items of an iterable in order, made by one thread up to `depth` items ahead.

    An exception comes out at its item's turn. Closing the iterator ends the thread, and closes `made`.
    """
    items, end = iter(made), object()
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


class Reading(NamedTuple):
    """How encoded images become pixels: fields of `config.data`."""

    size: int  # of a side
    resize: int  # of the shorter side, before the centre is cut out for evaluation
    min_area: float  # smallest share of an image that a random crop takes
    skip_unreadable: bool  # replace an image that cannot be read, or leave it out of an evaluation
    threads: int  # 0: one a core
    workers: int  # processes; 0: threads of this one
    max_megapixels: float = decode.MAX_MEGAPIXELS  # of an image; a larger one counts as unreadable


class View(NamedTuple):
    """One decoded image on its way to the batch."""

    image: np.ndarray  # uint8[size, size, 3]; [0] where there is nothing to decode, or nothing could be
    unreadable: tuple[str, ...]  # images that could not be read in its place


_NOTHING = np.zeros(0, np.uint8)  # not None, which grain leaves out


def batches(
    source: Source,
    sets: ByClass,
    picks_at: Callable[..., Picks],
    steps: range,
    *,
    views: int,
    seed: int,
    reading: Reading,
) -> Iterator[tuple[Batch, tuple[str, ...]]]:
    """Read the batches of some steps from encoded images: pixels are a function of (seed, step, view) alone.

    Args:
      source: with names, not images.
      sets: `sorted_by_class` of its labels.
      picks_at: called as picks_at(step=...).
      steps: consecutive.
      views: images to decode a step, at most: B, or 2 * B where partners come from outside of the batch.
      seed: of the crops.
      reading: how.

    Yields:
      The batch, and the images that could not be read and were replaced by others of their class.

    Raises:
      UserError: an image cannot be read, and is not to be skipped.
    """
    view_at = functools.partial(
        _training_view, source=source, sets=sets, picks_at=picks_at, views=views, seed=seed, reading=reading
    )
    made = _read(view_at, range(steps.start * views, steps.stop * views), reading, views)
    for step in steps:
        found = [next(made) for _ in range(views)]
        picks = _picks(picks_at, step)
        size = len(picks.index)
        image = np.stack([view.image for view in found[:size]])
        batch = Batch(image, source.labels[picks.index], picks.view)
        if picks.partner is not None:
            same = _in_batch(picks)
            partner = [
                image[slot] if same[i] else found[size + i].image for i, slot in enumerate(picks.partner_view.tolist())
            ]
            batch = batch._replace(
                partner_image=np.stack(partner),
                partner_label=source.labels[picks.partner],
                partner_view=picks.partner_view,
            )
        yield batch, tuple(name for view in found for name in view.unreadable)


def blocks(source: Source, size: int, reading: Reading | None = None):
    """Go through a split once, in order, `size` images at a time; the last block is filled up with black.

    Args:
      source: with images, or with names and `reading`.
      size: images a block.
      reading: of encoded images.

    Yields:
      Images uint8[size, H, W, C]; whether each stands for an example, bool[size]; names that could not be read.
    """
    parts = _array_parts(source, size) if source.names is None else _file_parts(source, size, reading)
    for rows, present, unreadable in parts:
        missing = size - len(rows)
        filled = np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)])
        yield filled, np.concatenate([present, np.zeros(missing, bool)]), unreadable


def _array_parts(source: Source, size: int):
    for start in range(0, len(source.labels), size):
        rows = source.images[start : start + size]
        yield rows, np.ones(len(rows), bool), ()


def _file_parts(source: Source, size: int, reading: Reading):
    view_at = functools.partial(_evaluated_view, source=source, reading=reading)
    made = _read(view_at, range(len(source.labels)), reading, size)
    black = np.zeros((reading.size, reading.size, 3), np.uint8)
    while found := list(itertools.islice(made, size)):
        present = np.array([view.image.size > 0 for view in found])
        rows = np.stack([view.image if view.image.size else black for view in found])
        yield rows, present, tuple(name for view in found for name in view.unreadable)


def _read(view_at: Callable[[int], View], positions: range, reading: Reading, ahead: int) -> Iterator[View]:
    """Make views in order, by threads or worker processes, up to `ahead` or so before their turn.

    Raises:
      Failure: a worker process has ended.
    """
    import grain
    from absl import flags

    threads = reading.threads or (1 if reading.workers else _cores())
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(64, 4 * threads, ahead))
    made = grain.MapDataset.range(positions.start, positions.stop).map(view_at).to_iter_dataset(options)
    marked = bool(reading.workers) and not flags.FLAGS.is_parsed()
    if marked:  # grain asks absl's flags, which only absl's own main parses
        flags.FLAGS.mark_as_parsed()
    if reading.workers:
        made = made.mp_prefetch(grain.MultiprocessingOptions(num_workers=reading.workers), _begin_worker)
    iterator, end = iter(made), object()
    with _Patience(_worker_processes if reading.workers else lambda: "the threads") as patience:
        try:
            while (view := patience.wait(lambda: next(iterator, end))) is not end:
                yield view
        except RuntimeError as error:
            if "Worker process was terminated" not in str(error):
                raise
            raise Failure(
                "a worker process that reads images has ended or was killed, perhaps because memory ran out; the same "
                "command goes on from the last checkpoint, --config.data.workers=0 reads by threads"
            ) from None
        finally:  # threads and processes end with whoever asked for views
            iterator.close()
            if marked:
                flags.FLAGS.unparse_flags()


def _begin_worker(index: int, count: int) -> None:
    """Prepare a worker process: signals are its run's matter, and it ends with it, however that ended."""
    del index, count
    cli.ignore_stop_signals()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _worker_processes() -> str:
    found = [process for process in multiprocessing.active_children() if process.name.startswith("grain")]
    return "the worker processes " + (", ".join(str(process.pid) for process in found) or "(they have ended)")


class _Patience:
    """Says, again and again, what is waited for when an image takes long: a disk, a process that was suspended."""

    def __init__(self, who: Callable[[], str]):
        self._who, self._since, self._done = who, None, threading.Event()
        self._thread = threading.Thread(target=self._watch, name="patience", daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()

    def wait(self, work: Callable):
        """Return work(), watched."""
        self._since = time.monotonic()
        try:
            return work()
        finally:
            self._since = None

    def _watch(self) -> None:
        told_of, due = None, _PATIENCE
        while not self._done.wait(_PATIENCE / 10):
            since = self._since
            if since is None or since != told_of:
                told_of, due = since, _PATIENCE
            if since is not None and (waited := time.monotonic() - since) >= due:
                due = waited + min(max(waited, _PATIENCE), _LONGEST_PATIENCE)
                _log.warning(
                    "waiting for %.0f s for an image from %s: is the disk slow, or one suspended?", waited, self._who()
                )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _training_view(position: int, *, source, sets, picks_at, views, seed, reading) -> View:
    step, slot = divmod(position, views)
    picks = _picks(picks_at, step)
    size = len(picks.index)
    if slot < size:
        index, view = picks.index[slot], picks.view[slot]
    elif _in_batch(picks)[slot - size]:
        return View(_NOTHING, ())
    else:
        index, view = picks.partner[slot - size], picks.partner_view[slot - size]
    box_of = functools.partial(decode.random_box, seed=seed, step=step, view=int(view), area=(reading.min_area, 1.0))
    image = _decoded(source, index, box_of, reading.size, reading)
    if image is not None:
        return View(image, ())
    # In its place stands the next one of its class.
    label, unreadable = source.labels[index], [path_of(source, index)]
    members = sets.order[sets.first[label] : sets.first[label] + sets.counts[label]]
    for member in np.roll(members, -int(np.searchsorted(members, index)))[1:]:
        image = _decoded(source, member, box_of, reading.size, reading)
        if image is not None:
            return View(image, tuple(unreadable))
        unreadable.append(path_of(source, member))
    raise UserError(f"none of the {len(members)} images of class {source.class_names[label]!r} can be read")


def _evaluated_view(position: int, *, source, reading) -> View:
    box_of = functools.partial(decode.centre_box, size=reading.size, resize=reading.resize)
    image = _decoded(source, position, box_of, reading.size, reading)
    return View(_NOTHING, (path_of(source, position),)) if image is None else View(image, ())


def _decoded(source: Source, position: int, box_of: Callable, size: int, reading: Reading) -> np.ndarray | None:
    """Read and decode one image; None for one that cannot be read and is to be skipped."""
    try:
        return decode.decoded(source.read(int(position)), box_of, size, reading.max_megapixels)
    except Exception as error:  # damage comes out as nearly any type
        if reading.skip_unreadable:
            return None
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(
            f"cannot read the image {path_of(source, position)} ({why}); mend it or take it out, or go on without "
            "such images by --config.data.skip_unreadable"
        ) from None


def thumbnails(source: Source, reading: Reading) -> np.ndarray:
    """Return all images of a source at 32 x 32, to find those that look alike; uint8[N, 32, 32, 3].

    With `reading.skip_unreadable` an image that cannot be read is black.

    Raises:
      UserError: an image cannot be read.
    """

    def small(position: int) -> np.ndarray:
        image = _decoded(source, position, _whole, 32, reading)
        return np.zeros((32, 32, 3), np.uint8) if image is None else image

    with ThreadPoolExecutor(reading.threads or None) as pool:
        return np.stack(list(pool.map(small, range(len(source.labels)))))


def unreadable(source: Source, reading: Reading, told: Callable[[int], None] | None = None) -> np.ndarray:
    """Decode every image of a source once, small, and return the positions of those that cannot be read.

    Args:
      source: with names, not images.
      reading: how; its threads do the work.
      told: called with the number of images done so far, now and then; what it raises ends the pass.

    Returns:
      int64[M], rising.
    """
    reading = reading._replace(skip_unreadable=True)

    def bad(positions: range) -> list[int]:
        return [i for i in positions if _decoded(source, i, _whole, 32, reading) is None]

    total, found = len(source.labels), []
    with ThreadPoolExecutor(reading.threads or _cores()) as pool:
        blocks = [range(start, min(start + 256, total)) for start in range(0, total, 256)]
        try:
            for block, part in zip(blocks, pool.map(bad, blocks), strict=True):
                found += part
                if told:
                    told(block.stop)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return np.array(found, np.int64)


def _whole(width: int, height: int) -> decode.Box:
    return 0, 0, width, height


def path_of(source: Source, position: int) -> str:
    """Return where an encoded image is, for people."""
    return os.path.join(source.root, source.names[position])


@functools.lru_cache(maxsize=16)
def _picks(picks_at: Callable[..., Picks], step: int) -> Picks:
    return picks_at(step=step)


def _in_batch(picks: Picks) -> np.ndarray:
    """Return which partners are views of the batch itself, bool[B]."""
    size = len(picks.index)
    slots = np.minimum(picks.partner_view, size - 1)
    return (picks.partner_view < size) & (picks.index[slots] == picks.partner)
