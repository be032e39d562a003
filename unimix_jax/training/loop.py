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

from unimix_jax import metrics
from unimix_jax.data import loading
from unimix_jax.errors import Interrupted, NonFiniteError
from unimix_jax.methods.build import Stage
from unimix_jax.metrics.predictions import Predictions
from unimix_jax.models import init
from unimix_jax.training import checkpoints, loggers, predict
from unimix_jax.training import input as training_input
from unimix_jax.training.devices import distribute, is_cpu, replicate
from unimix_jax.training.setup import Experiment
from unimix_jax.training.step import StepInputs, TrainState, kernel_dtype, many_steps, train_step

if TYPE_CHECKING:
    from orbax.checkpoint import CheckpointManager

_log = logging.getLogger(__name__)

_SECONDS_BETWEEN_SAVES = 30.0  # on accelerators, where an epoch takes less than a save does
_WATCHED = ("accuracy", "ece", "nll")  # measures that evaluations on the way record


class Due(NamedTuple):
    """The tasks that follow the steps of a dispatch."""

    records: tuple[int, ...]  # numbers of steps, from 1
    evaluate: tuple[str, ...]  # names of splits
    save: bool


def train(
    experiment: Experiment, state: TrainState, manager: "CheckpointManager", stop_requested: threading.Event
) -> tuple[TrainState, dict[str, predict.Scores], dict]:
    """Take the steps that are left, with records, evaluations and checkpoints at their times.

    Args:
      experiment: what is trained and how.
      state: on the devices; donated: do not use it afterwards.
      manager: of `checkpoints.opened`.
      stop_requested: set from outside to save after the step that runs, and leave.

    Returns:
      The last state, the scores of each evaluated split after it, and what was chosen post hoc.

    Raises:
      NonFiniteError: the loss, the state or a logit is not finite.
      Interrupted: `stop_requested` was set, and the state is saved.
    """
    config, clock, num_steps, first = experiment.config, experiment.clock, experiment.steps, int(state.step)
    predict_splits = predict.predictor(experiment)
    compiled_steps, stage = {}, None
    resident = training_input.resident(experiment)
    dispatches = loading.prefetch(training_input.dispatches(experiment, first))
    run_loggers = loggers.opened(
        config.loggers, directory=experiment.directory, config=config, first_step=first, num_steps=num_steps
    )
    with clock.part("steps"), run_loggers as records, contextlib.closing(dispatches):
        previous_sums, timed_from, timer, saved = None, first, time.monotonic(), time.monotonic()
        for next_stage, steps, batch in dispatches:
            if next_stage is not stage:
                stage, rate = next_stage, learning_rate(experiment, next_stage)
                constants = replicate((np.uint32(config.seed), stage.class_weight), experiment.devices)
                state = state if steps.start > stage.first else stage_start(experiment, stage, state)
            program = stage.program, len(steps)
            compiles = program not in compiled_steps
            if compiles:
                compiled_steps[program] = compiled_step(experiment, stage)
            rates = np.array([rate(step) for step in steps], np.float32)
            rates = rates if experiment.steps_per_dispatch > 1 else rates[0]
            inputs = StepInputs(constants[0], rates, constants[1])
            with clock.part("compile" if compiles else "steps"):
                state, sums = compiled_steps[program](state, batch, inputs, *resident)
            jax.block_until_ready(previous_sums)  # at most two dispatches in flight: each has its own buffers
            previous_sums = sums
            records.update(len(steps))

            stopping, last = stop_requested.is_set(), steps.stop
            due = _due(experiment, steps, stopping, time.monotonic() - saved)
            if any(due):
                means = _means(sums)
                seconds = time.monotonic() - timer
                per_second = None if compiles else round(config.batch_size * (last - timed_from) / seconds, 1)
                for step, loss in enumerate(means["loss"], start=steps.start + 1):
                    _check_finite(manager, _where(step, stage, rate), loss=loss)
                if due.evaluate or due.save:
                    _check_finite(manager, _where(last, stage, rate), state=state)
            for step in due.records:
                of_step = {name: float(values[step - 1 - steps.start]) for name, values in means.items()}
                about = {"stage": stage.name, "learning_rate": rate(step - 1), "images_per_second": per_second}
                records.log(_line(experiment, step) | of_step | about)
            if due.evaluate:
                scores, posthoc = predict_splits(state, due.evaluate)
                logits = [score.logits for score in scores.values()]
                _check_finite(manager, _where(last, stage, rate), logits=logits)
            for name in due.evaluate:
                values = metrics.summary(Predictions(scores[name].logits, scores[name].labels), names=_WATCHED)
                of_split = {"split": name} | {measure: values[measure] for measure in _WATCHED}
                records.log(_line(experiment, last) | of_split)
            if due.save:
                # After the records of these steps: a resumed run keeps them and begins behind them.
                with clock.part("checkpoints"):
                    checkpoints.save(manager, last, state, experiment.run_id)
                saved = time.monotonic()
                if stopping and last < num_steps:
                    raise Interrupted(f"at step {last} of {num_steps}, saved; --workdir={experiment.directory} goes on")
            if compiles or any(due):
                # The rate is of steps only, without compilation, evaluation and saving.
                jax.block_until_ready(sums)
                timed_from, timer = last, time.monotonic()
    if first == num_steps:
        scores, posthoc = predict_splits(state, tuple(experiment.splits.evaluated))
    return state, scores, posthoc


def _due(experiment: Experiment, steps: range, stopping: bool, unsaved: float) -> Due:
    """Return what is due after the steps of a dispatch, `unsaved` seconds after the last checkpoint.

    Evaluations and checkpoints are at the end of a dispatch.
    """
    config, splits = experiment.config, tuple(experiment.splits.evaluated)
    end = steps.stop == experiment.steps

    def every(period: int, step: int) -> bool:
        return period > 0 and step % period == 0

    logged = (step + 1 for step in steps if every(config.log_every, step + 1) or step + 1 == experiment.steps)
    evaluated = every(config.eval_every * experiment.steps_per_epoch, steps.stop)
    least = config.checkpoint.seconds
    if least < 0:
        least = 0.0 if is_cpu(experiment.devices) else _SECONDS_BETWEEN_SAVES
    save = unsaved >= least and every(config.checkpoint.every * experiment.steps_per_epoch, steps.stop)
    save = save or end or stopping
    return Due(tuple(logged), splits if end else splits[:1] if evaluated else (), save)


def _means(sums: dict) -> dict[str, np.ndarray]:
    """Return the means of the steps of a dispatch, float64[steps], from the sums and weights on the devices."""
    return {
        name: np.atleast_1d(np.divide(total, weight, dtype=float))
        for name, (total, weight) in jax.device_get(sums).items()
    }


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
    if stage.reinitialise:
        draw = 1 + experiment.method.stages.index(stage)
        variables = init.initialise(experiment.network, experiment.image_shape, experiment.config.seed, draw)
        state = state._replace(params={**state.params, "head": variables["params"]["head"]})
    if stage.restart:
        optimiser = experiment.step_config.optimiser
        state = state._replace(opt_state=optimiser.init(jax.device_get(state.params)))
    return replicate(state, experiment.devices)


def compiled_step(experiment: Experiment, stage: Stage) -> Callable:
    """Return the steps of a dispatch on the devices: (state, batch or indices, inputs, *resident arrays)."""
    step = functools.partial(train_step, stage=stage, network=experiment.network, config=experiment.step_config)
    many = experiment.steps_per_dispatch > 1

    def steps_from_indices(state, indices, inputs, images, labels, *, axis):
        def from_indices(state, indices, inputs, **keywords):
            return step(state, loading.gather(images, labels, indices), inputs, **keywords)

        if not many:
            return from_indices(state, indices, inputs, axis=axis)
        dtype = kernel_dtype(experiment.network)
        return many_steps(from_indices, state, indices, inputs, axis=axis, dtype=dtype)

    return distribute(
        steps_from_indices if experiment.on_device else step,
        experiment.devices,
        experiment.config.parallel.spmd,
        split=(None, int(many), None, None, None) if experiment.on_device else (None, 0, None),
        donate=(0,),
        deterministic=experiment.config.parallel.deterministic,
    )
