"""Progress of a run: a bar in a terminal, plain lines elsewhere, and all log lines in log.txt."""

import contextlib
import datetime
import logging
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from unimix_jax import cli
from unimix_jax.errors import printable
from unimix_jax.training.rundir import LOG

if TYPE_CHECKING:
    from tqdm import tqdm

_LINES_APART = 5.0  # seconds between plain lines of steps


@contextlib.contextmanager
def log_to(directory: pathlib.Path) -> Iterator[None]:
    """Send the project's log lines to standard error, around a progress bar, and to log.txt.

    Inside of the context Orbax logs errors only. Afterwards all loggers are as they were before, and a handler that
    libraries gave the root logger when they were imported is removed.

    Args:
      directory: of the run.

    Yields:
      Nothing.
    """
    handlers = list(logging.root.handlers)
    import absl.logging  # noqa: F401  it makes the logger "absl", of a class of its own

    logger, orbax = logging.getLogger("unimix_jax"), logging.getLogger("absl")  # Orbax logs 60 lines a save
    before = logger.level, logger.propagate, orbax.level
    file, console = _File(directory / LOG, encoding="utf-8"), _Console()
    file.setFormatter(_OneLine("%(asctime)s %(message)s"))
    console.setFormatter(_OneLine("%(message)s"))
    logger.setLevel(logging.INFO)
    logger.propagate = False
    orbax.setLevel(max(orbax.level, logging.ERROR))
    for handler in (file, console):
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in (file, console):
            logger.removeHandler(handler)
        level, logger.propagate, orbax_level = before
        logger.setLevel(level)
        orbax.setLevel(orbax_level)
        logging.root.handlers[:] = handlers
        with contextlib.suppress(OSError):  # of a full disk
            file.close()


class _OneLine(logging.Formatter):
    """One line for each record; names of files and replies of servers in it cannot control a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _File(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore the error if log.txt cannot be written: the run continues, and the terminal shows the lines."""


class _Console(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=cli.terminal())


@contextlib.contextmanager
def progress_bar(first: int, total: int) -> Iterator[tuple["tqdm", Callable[[dict], None]]]:
    """Show the steps of a run: a bar in a terminal, otherwise a line every few seconds.

    Args:
      first: the number of steps that were taken before.
      total: the number of all steps.

    Yields:
      The bar, on which `update()` is called after each step, and show(line), which is called with each line of
      metrics.jsonl.
    """
    from tqdm import tqdm

    log, shown, since = logging.getLogger(__name__), -_LINES_APART, None
    look = {"unit": "step", "dynamic_ncols": True, "mininterval": 0.5, "disable": None}
    with tqdm(total=total, initial=first, file=cli.terminal(), **look) as bar:

        def show(line: dict) -> None:
            nonlocal shown, since
            step, now = line["step"], time.monotonic()
            accuracy = f"accuracy {100 * line['accuracy']:.1f} %"
            if "split" in line:
                log.info("epoch %g: %s %s, ECE %.1f %%", line["epoch"], line["split"], accuracy, 100 * line["ece"])
                return
            text = f"loss {line['loss']:.3f}, {accuracy}"
            if line["images_per_second"] is not None:
                text += f", {line['images_per_second']:.0f} images/s"
            if not bar.disable:
                bar.set_postfix_str(text, refresh=False)
            elif now - shown >= _LINES_APART or step == total:
                shown = now
                # Compilation lies before the first line: it says nothing of what is left.
                since = since or (now, step)
                pace = (now - since[0]) / max(step - since[1], 1)
                left = f", {datetime.timedelta(seconds=round(pace * (total - step)))} left" if step > since[1] else ""
                log.info("step %d/%d, epoch %.2f: %s%s", step, total, line["epoch"], text, left)

        yield bar, show
