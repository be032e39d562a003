"""The training loop: steps, and after each of them the records, evaluations and checkpoints that are due."""

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from unimix_jax import metrics
from unimix_jax.data import loading
from unimix_jax.errors import Interrupted, NonFiniteError
from unimix_jax.methods.build import Stage
from unimix_jax.metrics.predictions import Predictions
from unimix_jax.models import init
from unimix_jax.training import checkpoints, loggers, predict
from unimix_jax.training import input as training_input
from unimix_jax.training.devices import distribute, replicate
from unimix_jax.training.setup import Experiment
from unimix_jax.training.step import StepInputs, TrainState, train_step

if TYPE_CHECKING:
    from orbax.checkpoint import CheckpointManager

_log = logging.getLogger(__name__)

_WATCHED = ("accuracy", "ece", "nll")  # measures that evaluations on the way record


class Due(NamedTuple):
    """The tasks that follow a step."""

    record: bool
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
    batches = loading.prefetch(training_input.batches(experiment, first))
    run_loggers = loggers.opened(
        config.loggers, directory=experiment.directory, config=config, first_step=first, num_steps=num_steps
    )
    with clock.part("steps"), run_loggers as records, contextlib.closing(batches):
        previous_sums, timed_from, timer = None, first, time.monotonic()
        for step, (step_stage, batch) in enumerate(batches, start=first + 1):
            if step_stage is not stage:
                stage, rate = step_stage, learning_rate(experiment, step_stage)
                state = state if step - 1 > stage.first else stage_start(experiment, stage, state)
            compiles = stage.program not in compiled_steps
            if compiles:
                compiled_steps[stage.program] = compiled_step(experiment, stage)
            inputs = StepInputs(np.uint32(config.seed), np.float32(rate(step - 1)), stage.class_weight)
            with clock.part("compile" if compiles else "steps"):
                state, sums = compiled_steps[stage.program](state, batch, inputs, *resident)
            jax.block_until_ready(previous_sums)  # at most two steps in flight: each has its own buffers
            previous_sums = sums
            records.update()

            stopping = stop_requested.is_set()
            due = _due(experiment, step, stopping)
            line = {"step": step, "epoch": round(step / experiment.steps_per_epoch, 4)}
            where = f"step {step} (stage {stage.name!r}, learning rate {rate(step - 1):g})"
            if any(due):
                means = {name: float(total) / float(weight) for name, (total, weight) in jax.device_get(sums).items()}
                _check_finite(manager, where, loss=means["loss"], state=state if due.evaluate or due.save else ())
            if due.record:
                seconds = time.monotonic() - timer
                per_second = None if compiles else round(config.batch_size * (step - timed_from) / seconds, 1)
                about = {"stage": stage.name, "learning_rate": rate(step - 1), "images_per_second": per_second}
                records.log(line | means | about)
            if due.evaluate:
                scores, posthoc = predict_splits(state, due.evaluate)
                _check_finite(manager, where, logits=[score.logits for score in scores.values()])
            for name in due.evaluate:
                values = metrics.summary(Predictions(scores[name].logits, scores[name].labels), names=_WATCHED)
                records.log(line | {"split": name} | {measure: values[measure] for measure in _WATCHED})
            if due.save:
                # After the records of this step: a resumed run keeps them and begins behind them.
                with clock.part("checkpoints"):
                    checkpoints.save(manager, step, state, experiment.run_id)
                if stopping and step < num_steps:
                    raise Interrupted(f"at step {step} of {num_steps}, saved; --workdir={experiment.directory} goes on")
            if compiles or any(due):
                # The rate is of steps only, without compilation, evaluation and saving.
                jax.block_until_ready(sums)
                timed_from, timer = step, time.monotonic()
    if first == num_steps:
        scores, posthoc = predict_splits(state, tuple(experiment.splits.evaluated))
    return state, scores, posthoc


def _due(experiment: Experiment, step: int, stopping: bool) -> Due:
    """Return what is due after a step."""
    config, splits = experiment.config, tuple(experiment.splits.evaluated)
    last = step == experiment.steps

    def every(period: int) -> bool:
        return period > 0 and step % period == 0

    evaluate = splits if last else splits[:1] if every(config.eval_every * experiment.steps_per_epoch) else ()
    save = last or stopping or every(config.checkpoint.every * experiment.steps_per_epoch)
    return Due(last or every(config.log_every), evaluate, save)


def _check_finite(manager, where: str, **named) -> None:
    """Raise a NonFiniteError for the first tree of arrays, given by name, that holds nan or infinity."""
    for name, tree in named.items():
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(tree))):
            newest = manager.latest_step()
            kept = "there is no checkpoint yet" if newest is None else f"the checkpoint of step {newest} is kept"
            raise NonFiniteError(f"the {name} is not finite at {where}; {kept}")


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
    """Return the step of a stage on the devices: (state, batch or indices, inputs, *resident arrays)."""
    step = functools.partial(train_step, stage=stage, network=experiment.network, config=experiment.step_config)
    on_device = experiment.config.data.on_device

    def step_from_indices(state, indices, inputs, images, labels, *, axis):
        return step(state, loading.gather(images, labels, indices), inputs, axis=axis)

    return distribute(
        step_from_indices if on_device else step,
        experiment.devices,
        experiment.config.parallel.spmd,
        split=(False, True, False, False, False) if on_device else (False, True, False),
        donate=(0,),
    )
