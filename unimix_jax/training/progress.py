"""What a run shows while it goes on: a bar in a terminal, plain lines elsewhere, all lines in log.txt."""

import contextlib
import logging
import pathlib
import sys
import time

from unimix_jax.workdir import LOG

_LINES_APART = 5.0  # seconds between plain lines of steps


@contextlib.contextmanager
def logging_to(directory: pathlib.Path):
    """Send the project's log lines to standard error, around a bar that may be there, and to log.txt."""
    from tqdm import tqdm

    logger = logging.getLogger("unimix_jax")
    file = logging.FileHandler(directory / LOG, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    console = logging.Handler()
    console.emit = lambda record: tqdm.write(console.format(record), file=sys.stderr)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in (file, console):
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in (file, console):
            logger.removeHandler(handler)
        file.close()


@contextlib.contextmanager
def steps_bar(first: int, total: int):
    """Show the steps of a run; yields show(record), called with each record of metrics.jsonl.

    In a terminal a bar with rate, loss, accuracy and the time left; elsewhere a line now and then.
    """
    from tqdm import tqdm

    log, started, last_line = logging.getLogger(__name__), time.monotonic(), -_LINES_APART
    with tqdm(total=total, initial=first, unit="step", dynamic_ncols=True, mininterval=0.5, disable=None) as bar:

        def show(record: dict) -> None:
            nonlocal last_line
            step, now = record["step"], time.monotonic()
            if "split" in record:
                log.info(
                    "epoch %g: %s accuracy %.1f %%, ECE %.1f %%",
                    record["epoch"],
                    record["split"],
                    100 * record["accuracy"],
                    100 * record["ece"],
                )
                return
            text = f"loss {record['loss']:.3f}, accuracy {100 * record['accuracy']:.0f} %"
            if not bar.disable:
                bar.set_postfix_str(f"{text}, {record['images_per_second']:.0f} images/s", refresh=False)
                bar.update(step - bar.n)
            elif now - last_line >= _LINES_APART or step == total:
                last_line = now
                left = (now - started) / max(step - first, 1) * (total - step)
                log.info(
                    "step %d/%d, epoch %g: %s, %.0f images/s, %d:%02d left",
                    step,
                    total,
                    record["epoch"],
                    text,
                    record["images_per_second"],
                    *divmod(round(left), 60),
                )

        yield show
