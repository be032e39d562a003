"""The lines that a run prints: to standard error around a progress bar, and to log.txt."""

import contextlib
import logging
import pathlib
from collections.abc import Iterator

from unimix_jax import cli
from unimix_jax.errors import printable
from unimix_jax.training import processes
from unimix_jax.training.rundir import log_file


@contextlib.contextmanager
def log_to(directory: pathlib.Path) -> Iterator[None]:
    """Send the project's log lines to standard error, around a progress bar, and to log.txt.

    Of several processes each has a file of its own, and all but process 0 show warnings only.

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
    process = processes.index()
    file, console = _File(directory / log_file(process), encoding="utf-8"), _Console()
    console.setLevel(logging.WARNING if process else logging.INFO)
    file.setFormatter(_OneLine("%(asctime)s %(message)s"))
    console.setFormatter(_OneLine(f"process {process}: %(message)s" if process else "%(message)s"))
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
