"""Do the runs that are missing, one after the other, until the time is over."""

import pathlib
import threading
import time

from benchmarks.reproduce import directories, runs, store
from benchmarks.reproduce.runs import Run
from unimix_jax import errors, storage
from unimix_jax.config import Command
from unimix_jax.training import manifest, rundir

MISSING, IN_USE, STOPPED = "missing", "in use", "stopped"


def reasons(wanted: list[Run], results: pathlib.Path = store.RESULTS, fields: tuple[str, ...] = ()) -> dict[Run, str]:
    """Return why runs are to be done, each once, in their order; a run whose result is today's is left out.

    Args:
      wanted: the runs.
      results: folder of the results.
      fields: other fields of all configs, NAME=VALUE.

    Raises:
      UserError: a config is wrong, or a result cannot be read.
    """
    configs: dict[Run, dict] = {}
    why = {}
    for run in dict.fromkeys(wanted):
        result = store.read(run, results)
        if result is not None and run.of_seeds not in configs:
            configs[run.of_seeds] = _config(run, fields)
        reason = MISSING if result is None else store.fault(result, configs[run.of_seeds])
        if reason:
            why[run] = reason
    return why


def missing(wanted: list[Run], results: pathlib.Path = store.RESULTS, fields: tuple[str, ...] = ()) -> list[Run]:
    """Return the runs without a result of today's config, each once, in their order; see `reasons`."""
    return [*reasons(wanted, results, fields)]


def _config(run: Run, fields: tuple[str, ...]) -> dict:
    """Return the config of a run's command as results keep it; it is that of all its seeds."""
    return store.recorded(manifest.plain(runs.command(run, fields=fields).config))


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
    it, with all seeds of its method if they are trained as one program. A run whose loss is not finite has a result
    that says so; of seeds that are trained as one program each is then trained alone.

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
    to_do = reasons(wanted, results, fields)
    for run, why in to_do.items():
        if why != MISSING:
            print(f"{run.folder}/{run.seed}: its result is {why}; it is done again", flush=True)
    waiting, of_others = [*to_do], set()
    for number, run in enumerate(waiting, start=1):
        if stop_requested.is_set():
            break
        if run.of_seeds in of_others or not missing([run], results, fields):  # a replicate, or of another process
            continue
        begun = time.monotonic()
        config = _config(run, fields)
        together, directory = [run], None
        if replicates:
            group = missing([each for each in waiting if each.of_seeds == run.of_seeds], results, fields)
            together, directory = _together(run, group, folder / run.folder, config, results, fields)
        if len(together) > 1:
            command = runs.command(together[0], data_dir, len(together), fields)
            state = _train(command, directory, stop_requested)
            if state == store.NOT_FINITE:  # of one seed or more: each is to have its own result
                directories.train_one_by_one(directory)
                together = [run]
        if len(together) == 1:
            command = runs.command(run, data_dir, fields=fields)
            directory = directories.path_for(folder / run.folder, run.seed, run.seed, config)
            state = _train(command, directory, stop_requested)
        if state == IN_USE and replicates:
            of_others.add(run.of_seeds)
        if state in (IN_USE, STOPPED):
            continue
        for each in missing(together, results, fields):
            if state == store.COMPLETE:
                result = store.write(each, directory, results)
                values = {measure: result["test"][measure] for measure in ("accuracy", "ece", "nll")}
                text = " ".join(f"{measure} {value:.4f}" for measure, value in values.items())
            else:
                about = storage.read_json(directory / rundir.RUN) or {}
                store.save(each, store.about(each, about, manifest.plain(command.config), state), results)
                text = state
            print(
                f"[{number} of {len(waiting)}, {time.monotonic() - begun:.0f} s] {each.folder}/{each.seed}: {text}",
                flush=True,
            )
    return len(missing(wanted, results, fields))


def _train(command: Command, directory: pathlib.Path, stop_requested: threading.Event) -> str:
    """Train, or go on; return the state of the result, `STOPPED` or `IN_USE` if there is none yet."""
    from unimix_jax.training.run import run

    try:
        run(command.config, directory, stop_requested)
    except errors.Interrupted as error:
        print(f"{directory.parent.name}/{directory.name}: stopped {error}", flush=True)
        return STOPPED
    except errors.NonFiniteError as error:
        print(f"{directory.parent.name}/{directory.name}: {error}", flush=True)
        return store.NOT_FINITE
    except errors.InUse as error:
        print(f"left out: {error}", flush=True)
        return IN_USE
    return store.COMPLETE


def _together(
    run: Run, group: list[Run], folder: pathlib.Path, config: dict, results: pathlib.Path, fields: tuple[str, ...]
) -> tuple[list[Run], pathlib.Path]:
    """Return the runs that one program trains with a run, of consecutive seeds, and their directory.

    A directory that was begun goes on if it has the run's seed and its seeds are all missing, or if it is complete;
    otherwise these are the seeds that follow without a gap, are missing, and are in no directory of several.

    Args:
      run: the first that is missing.
      group: the runs that are missing and differ in the seed only.
      folder: of their directories.
      config: of all of them, see `store.recorded`.
      results: folder of the results.
      fields: other fields of all configs, NAME=VALUE.
    """
    begun = [(path, seeds) for path, seeds in directories.of_config(folder, config) if len(seeds) > 1]
    own = [(path, seeds) for path, seeds in begun if run.seed in seeds]
    if any(directories.are_trained_one_by_one(path) for path, _ in own):
        return [run], directories.path_for(folder, run.seed, run.seed, config)
    for path, seeds in own:
        together = [run._replace(seed=seed) for seed in seeds]
        if directories.is_complete(path) or len(missing(together, results, fields)) == len(together):
            return together, path
    free = {each.seed for each in group} - {seed for _, seeds in begun for seed in seeds}
    last = run.seed
    while last + 1 in free:
        last += 1
    together = [run._replace(seed=seed) for seed in range(run.seed, last + 1)]
    return together, directories.path_for(folder, run.seed, last, config)
