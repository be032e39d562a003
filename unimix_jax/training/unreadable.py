"""Training images that cannot be read: found before training, left out, and recorded in the run directory."""

import logging
import pathlib
import threading
import time
from collections.abc import Iterable

import numpy as np

from unimix_jax import storage
from unimix_jax.data import sources, thumbnails
from unimix_jax.data.digests import digest
from unimix_jax.data.types import Source, Splits
from unimix_jax.data.views import Reading
from unimix_jax.errors import Interrupted
from unimix_jax.training import processes, rundir

_log = logging.getLogger(__name__)


def without_unreadable(
    splits: Splits,
    reading: Reading,
    directory: pathlib.Path,
    stop_requested: threading.Event | None = None,
) -> Splits:
    """Leave out training images that cannot be read, so that counts, priors and groups are those of the others.

    All images are decoded once, before training. The run directory keeps the result: a later start leaves out the
    same images and decodes none.

    Args:
      splits: of photographs.
      reading: how they are decoded.
      directory: of the run, which keeps the result.
      stop_requested: set from outside to leave.

    Returns:
      The splits without these images.

    Raises:
      UserError: a class has no image left.
      Interrupted: `stop_requested` was set.
    """
    train = splits.train
    left_out = processes.from_first(lambda: _left_out(train, reading, directory, stop_requested).tolist())
    left_out = np.array(left_out, np.int64)
    readable = np.delete(np.arange(len(train.labels)), left_out)
    splits = splits._replace(train=train.take(readable) if len(left_out) else train, unreadable=len(left_out))
    sources.check_classes(splits)
    return splits


def _left_out(
    train: Source, reading: Reading, directory: pathlib.Path, stop_requested: threading.Event | None
) -> np.ndarray:
    """Return the positions of the images to leave out, int64[M], and keep them in the run directory."""
    about = {"images": len(train.labels), "digest": digest(train)}
    about["max_megapixels"] = reading._asdict().get("max_megapixels")  # a larger image counts as unreadable
    kept = _known_unreadable(directory, about)
    before = (storage.read_json(directory / rundir.RUN) or {}).get("data", {}).get("train", {})
    if kept is not None:
        left_out = kept
        if len(left_out):
            _log.info("%d training images that could not be read when the run began are left out", len(left_out))
    elif before and "files" not in before:
        _log.warning(
            "this run began with a version that replaced unreadable images by others of their class, and goes on in "
            "this way"
        )
        left_out = np.zeros(0, np.int64)
    else:
        left_out = _unreadable_images(train, reading, stop_requested)
        record(directory, [train.path_of(i) for i in left_out.tolist()])
    storage.write_json(directory / rundir.CHECKED, about | {"left_out": left_out.tolist()})
    return left_out


def _known_unreadable(directory: pathlib.Path, about: dict) -> np.ndarray | None:
    """Return the positions that an earlier start kept in checked.json, int64[M]; None if they are of other images."""
    kept = storage.read_json(directory / rundir.CHECKED)
    if kept is None or {key: kept.get(key) for key in about} != about:
        return None
    left_out = kept.get("left_out")
    if not isinstance(left_out, list) or not all(type(i) is int and 0 <= i < about["images"] for i in left_out):
        return None
    return np.array(left_out, np.int64)


def _unreadable_images(source, reading: Reading, stop_requested: threading.Event | None) -> np.ndarray:
    """Return the positions of the images that cannot be read, and log the progress of the search."""
    total, start = len(source.labels), time.monotonic()
    reported = start
    _log.info("reading all %d training images once, to find those that cannot be read", total)

    def report(done: int) -> None:
        nonlocal reported
        if stop_requested is not None and stop_requested.is_set():
            raise Interrupted("before the first step, while the training images were looked at; start again to go on")
        if time.monotonic() - reported > 30:
            reported = time.monotonic()
            _log.info("read %d of %d training images", done, total)

    positions = thumbnails.unreadable(source, reading, report)
    _log.info("%d of %d training images cannot be read (%.1f s)", len(positions), total, time.monotonic() - start)
    return positions


_LOCK = threading.Lock()  # training reads ahead in a thread while an evaluation reads in another


def record(directory: pathlib.Path, names: Iterable[str]) -> None:
    """Add names of images that could not be read to the run's list, each once, and log a warning."""
    if not names:
        return
    path = directory / rundir.unreadable_file(processes.index())  # no two processes write one file
    with _LOCK:
        known = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")[:-1] if path.exists() else []
        there = set(known)
        new = [name for name in dict.fromkeys(names) if name not in there]
        if new:
            shown = ", ".join(new[:5]) + (f" and {len(new) - 5} more" if len(new) > 5 else "")
            _log.warning(
                "cannot be read and is passed over: %s (%d so far, see %s)", shown, len(known) + len(new), path
            )
            text = "".join(f"{name}\n" for name in [*known, *new])
            storage.write_whole(path, text.encode("utf-8", "surrogateescape"))


def count(directory: pathlib.Path) -> int:
    """Return the number of images in the run's lists of unreadable images, of all its processes."""
    paths = [path for pattern in ("unreadable.txt", "unreadable_*.txt") for path in directory.glob(pattern)]
    return len({name for path in paths for name in path.read_bytes().split(b"\n")[:-1]})
