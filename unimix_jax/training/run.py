"""A run: from a config and a directory to predictions and metrics, begun or resumed."""

import contextlib
import dataclasses
import logging
import os
import pathlib
import threading
import time
from typing import TYPE_CHECKING

from unimix_jax import storage
from unimix_jax.config.compare import flat
from unimix_jax.errors import Interrupted, UserError
from unimix_jax.models import pretrained
from unimix_jax.training import (
    checkpoints,
    console,
    loggers,
    loop,
    manifest,
    predict,
    preemption,
    processes,
    results,
    rundir,
    runtime,
    setup,
    step,
    timings,
    unreadable,
)
from unimix_jax.training.devices import place_replicates

if TYPE_CHECKING:
    from ml_collections import ConfigDict
    from orbax.checkpoint import CheckpointManager

_log = logging.getLogger(__name__)


def run(
    config: "ConfigDict",
    directory: str | os.PathLike,
    stop_requested: threading.Event | None = None,
    clock: timings.Clock | None = None,
    notice: preemption.Notice | None = None,
) -> dict:
    """Train as the config says, or go on where an earlier call stopped.

    Args:
      config: of `config.default()`, checked by `config.check`.
      directory: the run directory; made if needed.
      stop_requested: of `cli.graceful_stop`; once it is set, the run saves and leaves.
      clock: counts the time of each part.
      notice: the time that is left after a stop is asked for, if it is known.

    Returns:
      What metrics.json holds.

    Raises:
      UserError: a mistake in config or data, or the directory of another run; nothing is compiled before.
      NonFiniteError: the loss is not finite; the last sound checkpoint stays.
      Failure: a worker process that reads images has ended, or a checkpoint could not be written; the last sound
        checkpoint stays.
      OSError: another file of the run could not be written.
      Interrupted: `stop_requested` was set, and the state is saved.
    """
    directory, clock = pathlib.Path(directory), clock or timings.Clock()
    stop_requested = stop_requested or threading.Event()
    if processes.is_first():
        rundir.create(directory)
    with rundir.locked(directory) if processes.is_first() else contextlib.nullcontext(), console.log_to(directory):
        processes.check_agreement(manifest.common(config), "their configs")
        previous, result = processes.from_first(lambda: _earlier(config, directory))
        if result:
            return result
        start = time.monotonic()
        loggers.check(config.loggers)
        with clock.part("set-up"):
            experiment = setup.prepare(config, directory, clock, stop_requested)
        about = _write_manifest(previous, experiment)
        experiment = dataclasses.replace(experiment, run_id=about["id"])
        processes.check_agreement({"digest": checkpoints.digest(experiment.variables)}, "the weights they begin with")
        try:
            result = _train_and_evaluate(experiment, stop_requested, notice)
        except Exception:
            with contextlib.suppress(OSError):  # on a full disk, the error that stopped the run is what the user needs
                _write_run(directory, {**about, "state": "stopped"})
            raise
        about |= {
            "state": "complete",
            "seconds": round(time.monotonic() - start, 1),
            "peak_memory_mib": runtime.peak_memory_mib(),
            "peak_device_memory_mib": runtime.peak_device_memory_mib(experiment.devices),
            "unreadable": unreadable.count(directory),
            "outputs": rundir.output_digests(directory),
        }
        _write_run(directory, about)
        return result


def _write_run(directory: pathlib.Path, about: dict) -> None:
    if processes.is_first():
        storage.write_json(directory / rundir.RUN, about)


def _earlier(config: "ConfigDict", directory: pathlib.Path) -> tuple[dict, dict | None]:
    """Return run.json of an earlier start, {} without one, and the result of a finished run, None if there is none."""
    previous = manifest.previous_manifest(config, directory)
    if previous.get("state") == "complete" and (result := _earlier_result(directory, previous, config)):
        manifest.warn_of_changed_code(previous)
        _log.info("%s is complete", directory)
        return previous, result
    if not previous and rundir.has_checkpoints(directory):
        raise UserError(
            f"{directory} has checkpoints but no {rundir.RUN}, which says what they were trained on; restore it "
            "or give a new --workdir"
        )
    return previous, None


def _write_manifest(previous: dict, experiment: setup.Experiment) -> dict:
    """Write config.json and run.json for this start; return what run.json holds."""
    config, directory = experiment.config, experiment.directory
    has_checkpoints = rundir.has_checkpoints(directory)
    environment = runtime.environment(
        experiment.devices,
        config.parallel.spmd,
        experiment.step_config.ops,
        experiment.steps_per_dispatch,
        config.parallel.deterministic,
    )
    with experiment.clock.part("data"):
        about = manifest.new_manifest(
            previous,
            config,
            experiment.splits,
            experiment.method.test_prior,
            environment,
            pretrained.digest(config.pretrained) if config.pretrained and not has_checkpoints else None,
            saved=has_checkpoints,
        )
    processes.check_agreement(flat(about["data"]), "their data")
    versions = {name: environment.get(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy", "ops")}
    processes.check_agreement(
        versions | {name: about["starts"][-1][name] for name in ("version", "commit")}, "their versions"
    )
    _log.info("run directory: %s", directory)
    if processes.is_first():
        storage.write_json(directory / rundir.CONFIG, manifest.plain(config))
    _write_run(directory, about)
    return processes.from_first(lambda: about)


def _train_and_evaluate(
    experiment: setup.Experiment, stop_requested: threading.Event, notice: preemption.Notice | None
) -> dict:
    """Train from the newest checkpoint, or from the start, to the end; write and return the metrics."""
    directory, clock = experiment.directory, experiment.clock
    if stop_requested.is_set():
        raise Interrupted(f"before the first step; --workdir={directory} goes on")
    with _checkpoint_manager(experiment) as manager:
        with clock.part("set-up"):
            state = starting_state(experiment, manager)
        _, scores, posthoc = loop.train(experiment, state, manager, stop_requested, notice)
        with clock.part("evaluation"):
            _write_lost_stages(experiment, manager)
            return processes.from_first(lambda: results.write(experiment, scores, posthoc))


def _write_lost_stages(experiment: setup.Experiment, manager: "CheckpointManager") -> None:
    """Write the results of stages before the last one that are gone, from the checkpoints that were kept for that."""
    directory, ended = experiment.directory, experiment.method.ended_by_restart()
    files = {last: directory / rundir.stage_folder(stage.name) / rundir.METRICS for last, stage in ended.items()}
    lost = processes.from_first(lambda: [last for last, file in files.items() if not file.exists()])
    for last in lost:
        state = step.first_state(experiment.variables, experiment.step_config.optimiser, experiment.config.replicates)
        state = checkpoints.restore_step(manager, last, state, experiment.run_id)
        if state is None:
            _log.warning("the results of stage %r are gone, and so is its checkpoint", ended[last].name)
            continue
        state = place_replicates(state, experiment.devices, experiment.config.replicates)
        scores, posthoc = predict.predictor(experiment)(state, tuple(experiment.splits.evaluated))
        if processes.is_first():
            results.write(experiment, scores, posthoc, ended[last])


@contextlib.contextmanager
def _checkpoint_manager(experiment: setup.Experiment):
    """Open the run's checkpoints, and count the time that opening and closing take."""
    path, keep, clock = experiment.directory / rundir.CHECKPOINTS, experiment.config.checkpoint.keep, experiment.clock
    with contextlib.ExitStack() as stack:
        with clock.part("checkpoints"):
            manager = stack.enter_context(checkpoints.opened(path, keep, experiment.method.ended_by_restart()))
        yield manager
        with clock.part("checkpoints"):
            stack.close()


def starting_state(experiment: setup.Experiment, manager: "CheckpointManager") -> step.TrainState:
    """Return the state to go on from, on the devices: the newest sound checkpoint's, or a new one.

    Args:
      experiment: the run.
      manager: of `checkpoints.opened`.
    """
    replicates = experiment.config.replicates
    state = step.first_state(experiment.variables, experiment.step_config.optimiser, replicates)
    setup.log_description(experiment)
    path = experiment.directory / rundir.CHECKPOINTS
    restored = checkpoints.restore_newest(manager, path, state, experiment.run_id)
    if restored is not None:
        state = restored
        _log.info("resuming at step %d of %d", loop.steps_taken(state), experiment.steps)
    if processes.is_first():
        rundir.truncate_metrics(experiment.directory / rundir.METRICS_LINES, loop.steps_taken(state))
    return place_replicates(state, experiment.devices, replicates)


def _earlier_result(directory: pathlib.Path, about: dict, config: "ConfigDict") -> dict | None:
    """Return what metrics.json of a finished run holds, and log what was changed since; None if a result is gone.

    A result that is gone is written again from the last checkpoint, or by training where there is none. A result that
    was changed is then moved aside; otherwise it stays as it is. Damaged metrics are moved aside and computed again,
    from the predictions if possible.
    """
    changed, gone = rundir.changed_outputs(directory, about)
    needed = (rundir.METRICS, rundir.predictions_file("test"))  # of runs before results had digests, too
    gone = sorted({*gone, *(name for name in needed if not (directory / name).exists())})
    result, reason = None, f"{_are(gone)} gone"
    if not gone:
        try:
            result = rundir.read_results(directory / rundir.METRICS)
        except UserError:
            reason = f"{rundir.METRICS} is damaged"
            changed = sorted({*changed, rundir.METRICS})
    if result is None:
        # The choice of a post-hoc method is in no other file.
        from_predictions = changed == [rundir.METRICS] and not gone and config.method.posthoc.name == "none"
        source = "the predictions" if from_predictions else "the last checkpoint"
        how = f"the results are written anew from {source}"
        if not from_predictions and not rundir.has_checkpoints(directory):
            how = "there is no checkpoint, so that it is trained again from its first step"
        _log.warning("%s: %s; %s", directory, reason, how)
        for name in changed:
            aside = storage.unused(directory / f"{name}.changed")
            _log.warning("%s was changed after the run was finished; it is moved to %s", name, aside.name)
            (directory / name).rename(aside)
        return results.of_predictions(directory, config) if from_predictions else None
    if changed:
        _log.warning(
            "%s changed in %s after the run was finished; what the run itself wrote is written anew from the last "
            "checkpoint if you move the changed file away and start again",
            _are(changed, "was", "were"),
            directory,
        )
    return result


def _are(names: list[str], one: str = "is", several: str = "are") -> str:
    return f"{', '.join(names)} {one if len(names) == 1 else several}"
