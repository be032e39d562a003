"""Results of a function in order, computed ahead by threads or by worker processes, with grain."""

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from unimix_jax import cli
from unimix_jax.errors import Failure

_log = logging.getLogger(__name__)

_PATIENCE = 10.0  # seconds without a result before a warning; the next ones after twice as many each
_LONGEST_PATIENCE = 300.0  # seconds between warnings


def cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    function: Callable[[int], Any], positions: range, *, threads: int, workers: int, ahead: int
) -> Iterator[Any]:
    """Yield the results of a function of a position in the order of the positions.

    Args:
      function: called with each position; never returns None. With worker processes it must be picklable.
      positions: consecutive.
      threads: of this process, or of each worker; 0 for one a core, or for one in each worker.
      workers: processes; 0 for threads of this one.
      ahead: how many results are computed before their turn, or somewhat more.

    Yields:
      The results.

    Raises:
      Failure: a worker process has ended.
    """  # noqa: DOC501, RuntimeError is one of grain's own, raised again
    import grain
    from absl import flags

    threads = threads or (1 if workers else cores())
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(64, 4 * threads, ahead))
    results = grain.MapDataset.range(positions.start, positions.stop).map(function).to_iter_dataset(options)
    marked = bool(workers) and not flags.FLAGS.is_parsed()
    if marked:  # grain asks absl's flags, which only absl's own main parses
        flags.FLAGS.mark_as_parsed()
    if workers:
        results = results.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), _begin_worker)
    iterator, end = iter(results), object()
    with _Patience(_worker_processes if workers else lambda: "the threads") as patience:
        try:
            while (result := patience.wait(lambda: next(iterator, end))) is not end:
                yield result
        except RuntimeError as error:
            if "Worker process was terminated" not in str(error):
                raise
            raise Failure(
                "a worker process that reads images has ended or was killed, perhaps because memory ran out; the same "
                "command goes on from the last checkpoint, --config.data.workers=0 reads by threads"
            ) from None
        finally:  # threads and processes end with the iteration
            iterator.close()
            if marked:
                flags.FLAGS.unparse_flags()


def _begin_worker(index: int, count: int) -> None:
    """Prepare a worker process: it leaves signals to the run, and ends with it, however the run ended."""
    del index, count
    cli.ignore_stop_signals()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _worker_processes() -> str:
    workers = [process for process in multiprocessing.active_children() if process.name.startswith("grain")]
    return "the worker processes " + (", ".join(str(process.pid) for process in workers) or "(they have ended)")


class _Patience:
    """Logs again and again what is waited for when a result takes long: a disk, a process that was suspended."""

    def __init__(self, who: Callable[[], str]):
        self._who, self._since, self._done = who, None, threading.Event()
        self._thread = threading.Thread(target=self._watch, name="patience", daemon=True)

    def __enter__(self) -> Any:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._thread.join()

    def wait(self, work: Callable[[], Any]) -> Any:
        """Return work(), watched."""
        self._since = time.monotonic()
        try:
            return work()
        finally:
            self._since = None

    def _watch(self) -> None:
        watched, due = None, _PATIENCE  # the start of the wait that is watched, and when to log it
        while not self._done.wait(_PATIENCE / 10):
            since = self._since
            if since is None or since != watched:
                watched, due = since, _PATIENCE
            if since is not None and (waited := time.monotonic() - since) >= due:
                due = waited + min(max(waited, _PATIENCE), _LONGEST_PATIENCE)
                _log.warning(
                    "waiting for %.0f s for an image from %s: is the disk slow, or one suspended?", waited, self._who()
                )
