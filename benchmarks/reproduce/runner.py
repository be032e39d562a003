"""Do the runs that are missing, one after the other, until the time is over."""

import logging
import pathlib
import threading
import time

from benchmarks.reproduce import runs, store
from benchmarks.reproduce.runs import Run
from unimix_jax import errors, storage
from unimix_jax.config import Command
from unimix_jax.training import manifest, rundir

_log = logging.getLogger(__name__)


def missing(wanted: list[Run], results: pathlib.Path = store.RESULTS) -> list[Run]:
    """Return the runs without a result, each once, in their order."""
    return [run for run in dict.fromkeys(wanted) if not store.path_of(run, results).exists()]


def take(
    wanted: list[Run],
    folder: pathlib.Path,
    stop_requested: threading.Event,
    *,
    data_dir: str | None = None,
    replicates: bool = False,
    results: pathlib.Path = store.RESULTS,
    fields: tuple[str, ...] = (),
) -> int:
    """Do the runs that have no result yet, and write their results; return how many results are still missing.

    A run that is stopped goes on at the next call from its last checkpoint. One that another process does is left to
    it. A run whose loss is not finite has a result that says so.

    Args:
      wanted: the runs, the most important first.
      folder: of the run directories.
      stop_requested: set from outside to save and leave.
      data_dir: folder of CIFAR's files.
      replicates: train the seeds that are missing of each run as one program.
      results: folder of the results.
      fields: other fields of all configs, NAME=VALUE.

    Raises:
      UserError: a mistake in a config or in the data.
    """
    waiting = missing(wanted, results)
    for number, run in enumerate(waiting, start=1):
        if stop_requested.is_set():
            break
        if store.path_of(run, results).exists():  # a replicate, or done by another process
            continue
        together = _seeds(run, waiting, results) if replicates else [run]
        first, count = together[0], len(together)
        command = runs.command(first, data_dir, count, fields)
        name = str(first.seed) if count == 1 else f"{first.seed}_to_{together[-1].seed}"
        directory = folder / first.folder / name
        begun = time.monotonic()
        state = _train(command, directory, stop_requested)
        if state is None:
            continue
        for each in together:
            if state == store.COMPLETE:
                result = store.write(each, directory, results)
                values = {measure: result["test"][measure] for measure in ("accuracy", "ece", "nll")}
                text = " ".join(f"{measure} {value:.4f}" for measure, value in values.items())
            else:
                config, about = manifest.plain(command.config), storage.read_json(directory / rundir.RUN) or {}
                store.save(each, store.about(each, about, config, state), results)
                text = state
            print(
                f"[{number} of {len(waiting)}, {time.monotonic() - begun:.0f} s] {each.folder}/{each.seed}: {text}",
                flush=True,
            )
    return len(missing(wanted, results))


def _train(command: Command, directory: pathlib.Path, stop_requested: threading.Event) -> str | None:
    """Train, or go on; return the state of the result, None if there is none yet."""
    from unimix_jax.training.run import run

    try:
        run(command.config, directory, stop_requested)
    except errors.Interrupted as error:
        print(f"{directory.parent.name}/{directory.name}: stopped {error}", flush=True)
        return None
    except errors.NonFiniteError as error:
        print(f"{directory.parent.name}/{directory.name}: {error}", flush=True)
        return store.NOT_FINITE
    except errors.InUse as error:
        print(f"left out: {error}", flush=True)
        return None
    return store.COMPLETE


def _seeds(run: Run, waiting: list[Run], results: pathlib.Path) -> list[Run]:
    """Return the run and the runs of the seeds that follow it without a gap and have no result."""
    others = {each.seed: each for each in missing(waiting, results) if each.of_seeds == run.of_seeds}
    together = [run]
    while together[-1].seed + 1 in others:
        together.append(others[together[-1].seed + 1])
    return together
