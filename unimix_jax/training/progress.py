"""What a run shows while it goes on: a bar in a terminal, plain lines elsewhere, all lines in log.txt."""

import contextlib
import datetime
import logging
import pathlib
import time

from unimix_jax import doors
from unimix_jax.errors import printable
from unimix_jax.workdir import LOG

_LINES_APART = 5.0  # seconds between plain lines of steps


@contextlib.contextmanager
def logging_to(directory: pathlib.Path):
    """Send the project's log lines to standard error, around a bar that may be there, and to log.txt.

    Orbax's loggers say errors only meanwhile. Afterwards all loggers are as they were, and the handler that libraries
    give the root logger when they are imported is gone.
    """
    handlers = list(logging.root.handlers)
    import absl.logging  # noqa: F401  it makes the logger "absl", of a class of its own

    logger, orbax = logging.getLogger("unimix_jax"), logging.getLogger("absl")  # Orbax tells 60 lines a save
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
    """A line a record, harmless to terminals: names of files and replies of servers are in it."""

    def format(self, record):
        return printable(super().format(record))


class _File(logging.FileHandler):
    def handleError(self, record):
        """Let the run go on where log.txt cannot be written: the terminal has the lines."""


class _Console(logging.Handler):
    def emit(self, record):
        from tqdm import tqdm

        tqdm.write(self.format(record), file=doors.terminal())


@contextlib.contextmanager
def steps_bar(first: int, total: int):
    """Show the steps of a run: a bar in a terminal, a line now and then elsewhere.

    Yields:
      The bar, to be moved by `update()` at each step, and show(line), to be called with each line of
      metrics.jsonl.
    """
    from tqdm import tqdm

    log, shown, since = logging.getLogger(__name__), -_LINES_APART, None
    look = {"unit": "step", "dynamic_ncols": True, "mininterval": 0.5, "disable": None}
    with tqdm(total=total, initial=first, file=doors.terminal(), **look) as bar:

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
