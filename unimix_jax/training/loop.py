"""The training loop: steps, and after each of them the records, evaluations and checkpoints that are due."""

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from unimix_jax import metrics
from unimix_jax.data import loading
from unimix_jax.errors import AllInterrupted, NonFiniteError
from unimix_jax.methods.build import Stage
from unimix_jax.models import init
from unimix_jax.training import checkpoints, loggers, predict, processes, results
from unimix_jax.training import input as training_input
from unimix_jax.training.devices import AXIS, REPLICATE, distribute, is_cpu, place_replicates, replicate, shard
from unimix_jax.training.preemption import Notice
from unimix_jax.training.setup import Experiment
from unimix_jax.training.step import StepInputs, TrainState, kernel_dtype, many_steps, over_replicates, train_step

if TYPE_CHECKING:
    from orbax.checkpoint import CheckpointManager

_log = logging.getLogger(__name__)

_SECONDS_BETWEEN_SAVES = 30.0  # on accelerators, where an epoch takes less than a save does
_STOP = "stop"
_WATCHED = ("accuracy", "ece", "nll")  # measures that evaluations on the way record


class Due(NamedTuple):
    """The tasks that follow the steps of a dispatch."""

    records: tuple[int, ...]  # numbers of steps, from 1
    evaluate: tuple[str, ...]  # names of splits
    save: bool


def train(
    experiment: Experiment,
    state: TrainState,
    manager: "CheckpointManager",
    stop_requested: threading.Event,
    notice: Notice | None = None,
) -> tuple[TrainState, dict[str, predict.Scores], list[dict]]:
    """Take the steps that are left, with records, evaluations and checkpoints at their times.

    Args:
      experiment: what is trained and how.
      state: on the devices; donated: do not use it afterwards.
      manager: of `checkpoints.opened`.
      stop_requested: set from outside to save after the dispatch that runs, and leave.
      notice: the time that is left for that, if it is known.

    Returns:
      The last state, the scores of each evaluated split after it, and what was chosen post hoc, of each replicate.

    Raises:
      NonFiniteError: the loss, the state or a logit is not finite.
      AllInterrupted: `stop_requested` was set, of one process at least, and the state is saved.
    """
    config, clock, num_steps, first = experiment.config, experiment.clock, experiment.steps, steps_taken(state)
    predict_splits = predict.predictor(experiment)
    compiled_steps, stage, ended_by_restart = {}, None, experiment.method.ended_by_restart()
    resident = training_input.resident(experiment)
    dispatches = loading.prefetch(training_input.dispatches(experiment, first))
    run_loggers = loggers.opened(
        config.loggers if processes.is_first() else (),
        directory=experiment.directory,
        config=config,
        first_step=first,
        num_steps=num_steps,
    )
    with clock.part("steps"), run_loggers as records, contextlib.closing(dispatches):
        saving = checkpoints.Duration()
        previous_sums, timed_from, timer, saved = None, first, time.monotonic(), time.monotonic()
        for next_stage, steps, batch in dispatches:
            if next_stage is not stage:
                stage, rate = next_stage, learning_rate(experiment, next_stage)
                constants = seeds_and_weights(experiment, stage)
                state = state if steps.start > stage.first else stage_start(experiment, stage, state)
            program = stage.program, len(steps)
            compiles = program not in compiled_steps
            if compiles:
                compiled_steps[program] = compiled_step(experiment, stage)
            rates = np.array([rate(step) for step in steps], np.float32)
            rates = rates if experiment.steps_per_dispatch > 1 else rates[0]
            inputs = StepInputs(constants[0], rates, constants[1])
            flag = () if processes.count() == 1 else (_flag(stop_requested, experiment.devices),)
            with clock.part("compile" if compiles else "steps"):
                state, sums = compiled_steps[program](state, batch, inputs, *flag, *resident)
            jax.block_until_ready(previous_sums)  # at most two dispatches in flight: each has its own buffers
            # Several processes leave at the same step: one dispatch after that in which one of them was told to.
            agreed = _any_flag(previous_sums)
            previous_sums, last = sums, steps.stop
            records.update(len(steps))
            stopping = stop_requested.is_set() if processes.count() == 1 else agreed

            due = _due(experiment, steps, stopping, time.monotonic() - saved)
            if any(due):
                means = _means(sums, config.replicates)
                seconds = time.monotonic() - timer
                images = config.batch_size * config.replicates
                per_second = None if compiles else round(images * (last - timed_from) / seconds, 1)
                for step, losses in enumerate(means["loss"].T, start=steps.start + 1):
                    for seed, loss in zip(experiment.seeds, losses, strict=True):
                        name = "loss" if config.replicates == 1 else f"loss of seed {seed}"
                        _check_finite(manager, _where(step, stage, rate), **{name: loss})
                if due.evaluate or due.save:
                    _check_finite(manager, _where(last, stage, rate), state=state)
            for step in due.records:
                values = {name: of_steps[:, step - 1 - steps.start] for name, of_steps in means.items()}
                of_step = _of_seeds(values, experiment.seeds)
                about = {"stage": stage.name, "learning_rate": rate(step - 1), "images_per_second": per_second}
                records.log(_line(experiment, step) | of_step | about)
            if due.evaluate:
                scores, posthoc = predict_splits(state, due.evaluate)
                logits = [score.logits for score in scores.values()]
                _check_finite(manager, _where(last, stage, rate), logits=logits)
            for name in due.evaluate:
                values = [metrics.summary(predictions, names=_WATCHED) for predictions in scores[name].predictions()]
                watched = {measure: np.array([of[measure] for of in values]) for measure in _WATCHED}
                records.log(_line(experiment, last) | {"split": name} | _of_seeds(watched, experiment.seeds))
            if last in ended_by_restart and processes.is_first():
                results.write(experiment, scores, posthoc, ended_by_restart[last])
            if due.save and stopping and last < num_steps and not _save_fits(notice, saving, stop_requested):
                raise AllInterrupted(
                    f"at step {last} of {num_steps}, not saved, for the last save took {saving.seconds:.0f} s; "
                    f"--workdir={experiment.directory} goes on from step {manager.latest_step()}"
                )
            if due.save:
                # After the records of these steps: a resumed run keeps them and begins behind them.
                with clock.part("checkpoints"):
                    saving.watch(manager, last)
                    checkpoints.save(manager, last, state, experiment.run_id)
                saved = time.monotonic()
                if stopping and last < num_steps:
                    manager.wait_until_finished()
                    raise AllInterrupted(
                        f"at step {last} of {num_steps}, saved; --workdir={experiment.directory} goes on"
                    )
            if compiles or any(due):
                # The rate is of steps only, without compilation, evaluation and saving.
                jax.block_until_ready(sums)
                timed_from, timer = last, time.monotonic()
    if first == num_steps:
        scores, posthoc = predict_splits(state, tuple(experiment.splits.evaluated))
    return state, scores, posthoc


def _save_fits(notice: Notice | None, saving: checkpoints.Duration, stop_requested: threading.Event) -> bool:
    """Return whether a save like the last one ends before the machine does, on all machines of the run."""
    if notice is not None and stop_requested.is_set():
        notice.begin(since=getattr(stop_requested, "since", None))
    left = None if notice is None else notice.left()
    return processes.all_of(left is None or saving.seconds is None or saving.seconds < left)


def _flag(stop_requested: threading.Event, devices: list) -> jax.Array:
    """Return whether this process was told to stop, on each of its devices, for `_with_flag`."""
    return shard(np.full(len(processes.own(devices)), stop_requested.is_set(), np.int32), devices)


def _any_flag(sums: dict | None) -> bool:
    """Return whether a process was told to stop before the dispatch of these sums, the same in all processes."""
    return sums is not None and bool(sums.get(_STOP, False))


def _with_flag(take_steps: Callable) -> Callable:
    """Let the steps of a dispatch say whether a process was told to stop, as one more of their sums."""

    def flagged(state, batch, inputs, flag, *resident, axis):
        state, sums = take_steps(state, batch, inputs, *resident, axis=axis)
        return state, {**sums, _STOP: jax.lax.pmax(flag.max(), axis)}

    return flagged


def _due(experiment: Experiment, steps: range, stopping: bool, unsaved: float) -> Due:
    """Return what is due after the steps of a dispatch, `unsaved` seconds after the last checkpoint.

    Evaluations and checkpoints are at the end of a dispatch. All splits are evaluated at the end of the run, and of a
    stage after which another starts afresh.
    """
    config, splits = experiment.config, tuple(experiment.splits.evaluated)
    end = steps.stop == experiment.steps or steps.stop in experiment.method.ended_by_restart()

    def every(period: int, step: int) -> bool:
        return period > 0 and step % period == 0

    logged = (step + 1 for step in steps if every(config.log_every, step + 1) or step + 1 == experiment.steps)
    evaluated = every(config.eval_every * experiment.steps_per_epoch, steps.stop)
    least = config.checkpoint.seconds
    if least < 0:
        least = 0.0 if is_cpu(experiment.devices) else _SECONDS_BETWEEN_SAVES
    save = every(config.checkpoint.every * experiment.steps_per_epoch, steps.stop)
    # All processes save, or none: the clock of process 0 says whether it is time.
    save = save and (least == 0 or processes.from_first(lambda: unsaved >= least))
    save = save or end or stopping
    return Due(tuple(logged), splits if end else splits[:1] if evaluated else (), save)


def steps_taken(state: TrainState) -> int:
    """Return the number of updates of a state, which all its replicates have done.

    Args:
      state: of one run or of several replicates.
    """
    return int(np.max(jax.device_get(state.step)))


def seeds_and_weights(experiment: Experiment, stage: Stage) -> tuple:
    """Return the seeds and class weights of a stage, on the devices, for `StepInputs`.

    Args:
      experiment: of `setup.prepare`.
      stage: of its method.

    Returns:
      uint32[], of replicates uint32[R]; and float32[K].
    """
    seeds = np.array(experiment.seeds, np.uint32)
    if len(seeds) == 1:
        return replicate((seeds[0], stage.class_weight), experiment.devices)
    placed = place_replicates(seeds, experiment.devices, len(seeds))
    return placed, replicate(stage.class_weight, experiment.devices)


def _means(sums: dict, replicates: int) -> dict[str, np.ndarray]:
    """Return the means of the steps of a dispatch, float64[replicates, steps], from sums and weights on the devices."""
    return {
        name: np.divide(total, weight, dtype=float).reshape(replicates, -1)
        for name, (total, weight) in jax.device_get({k: v for k, v in sums.items() if k != _STOP}).items()
    }


def _of_seeds(values: dict[str, np.ndarray], seeds: tuple[int, ...]) -> dict[str, float]:
    """Return the entries of a record from the values of each seed: their mean, and of several seeds also each."""
    means = {name: float(of.mean()) for name, of in values.items()}
    if len(seeds) == 1:
        return means
    each = {f"{name}_seed_{seed}": float(of[r]) for name, of in values.items() for r, seed in enumerate(seeds)}
    return means | each


def _line(experiment: Experiment, step: int) -> dict:
    return {"step": step, "epoch": round(step / experiment.steps_per_epoch, 4)}


def _where(step: int, stage: Stage, rate: Callable[[int], float]) -> str:
    return f"step {step} (stage {stage.name!r}, learning rate {rate(step - 1):g})"


def _check_finite(manager, where: str, **named) -> None:
    """Raise a NonFiniteError for the first tree of arrays, given by name, that holds nan or infinity."""
    for name, tree in named.items():
        if not _is_finite(tree):
            newest = manager.latest_step()
            kept = "there is no checkpoint yet" if newest is None else f"the checkpoint of step {newest} is kept"
            raise NonFiniteError(f"the {name} is not finite at {where}; {kept}")


def _is_finite(tree) -> bool:
    """Return whether no leaf holds nan or infinity; on an accelerator one program looks, and no leaf is fetched."""
    leaves = jax.tree.leaves(tree)
    if all(isinstance(leaf, np.ndarray | np.generic) or is_cpu([*leaf.devices()]) for leaf in leaves):
        return all(np.isfinite(leaf).all() for leaf in jax.device_get(leaves))
    return bool(_all_finite(leaves))


@jax.jit
def _all_finite(leaves: list) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def learning_rate(experiment: Experiment, stage: Stage) -> Callable[[int], float]:
    """Return the learning rate of a stage as a function of the step."""
    if stage.schedule is not None:
        return lambda step: float(stage.schedule(step - stage.first))
    return experiment.learning_rate


def stage_start(experiment: Experiment, stage: Stage, state: TrainState) -> TrainState:
    """Return the state with which a stage begins: with a new classifier or a new optimiser state if it says so."""
    replicates = experiment.config.replicates
    if stage.reinitialise:
        draw = 1 + experiment.method.stages.index(stage)
        heads = [
            init.initialise(experiment.network, experiment.image_shape, seed, draw)["params"]["head"]
            for seed in experiment.seeds
        ]
        head = heads[0] if replicates == 1 else jax.tree.map(lambda *leaves: np.stack(leaves), *heads)
        state = state._replace(params={**state.params, "head": head})
    if stage.restart:
        first = experiment.step_config.optimiser.init
        first = first if replicates == 1 else jax.vmap(first)
        state = state._replace(opt_state=first(jax.device_get(state.params)))
    return place_replicates(state, experiment.devices, replicates)


def compiled_step(experiment: Experiment, stage: Stage) -> Callable:
    """Return the steps of a dispatch on the devices: (state, batch or indices, inputs, *resident arrays)."""
    step = functools.partial(train_step, stage=stage, network=experiment.network, config=experiment.step_config)
    many, replicates = experiment.steps_per_dispatch > 1, experiment.config.replicates

    def steps_from_indices(state, indices, inputs, images, labels, *, axis):
        def from_indices(state, indices, inputs, **keywords):
            return step(state, loading.gather(images, labels, indices), inputs, **keywords)

        if not many:
            return from_indices(state, indices, inputs, axis=axis)
        dtype, join = kernel_dtype(experiment.network), experiment.step_config.ops == "pallas" and replicates == 1
        return many_steps(from_indices, state, indices, inputs, axis=axis, dtype=dtype, join=join)

    take_steps, split = (steps_from_indices, (None,) * 2) if experiment.on_device else (step, ())
    if replicates == 1:
        split, result = (None, int(many), None, *split), None
    else:
        take_steps, result = over_replicates(take_steps), P(REPLICATE)
        batch_specs = P(REPLICATE, *(None,) * many, AXIS)
        split = (result, batch_specs, StepInputs(result, P(), P()), *split)
    if processes.count() > 1:
        take_steps, split = _with_flag(take_steps), (*split[:3], 0, *split[3:])
    return distribute(
        take_steps,
        experiment.devices,
        experiment.config.parallel.spmd,
        split=split,
        result=result,
        replicates=replicates,
        donate=(0,),
        deterministic=experiment.config.parallel.deterministic,
    )
