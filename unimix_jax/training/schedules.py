"""Schedules: learning rates as functions of the step, by name."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from unimix_jax import registry
from unimix_jax.config import fields
from unimix_jax.errors import UserError, described

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_log = logging.getLogger(__name__)

USUAL_WARMUP = -1.0  # the default of config.optim.warmup_epochs


def of_run(optim: "ConfigDict", epochs: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the learning rate of a run as a function of the step, counted from 0: its schedule with a warm-up.

    With the defaults and 200 epochs, counted from 1: .1 * e/5 up to epoch 5, .1 up to 160, .001 up to 180, then
    .00001. Stages after the run that take its schedule have the rate of its last step.

    Args:
      optim: config.optim with `learning_rate`; `warmup_epochs`, see `_warm_up`; `schedule`, the name of an entry, and
        `schedule_options`; `decay_at` and `decay_factor`, for schedules that ask for them.
      epochs: of the run.
      steps_per_epoch: of the run.

    Returns:
      A function step -> learning rate.

    Raises:
      UserError: an unknown schedule or option.

    Source: appendix C.1 of the paper's supplement; kaidic/LDAM-DRW, cifar_train.py.
    """
    context = {name: optim[name] for name in ("learning_rate", "decay_at", "decay_factor")}
    context |= {"total_steps": epochs * steps_per_epoch, "steps_per_epoch": steps_per_epoch}
    schedule = registry.bind("schedule", {"name": optim.schedule, **optim.schedule_options.to_dict()}, context)
    for name in ("learning_rate", "decay_at", "decay_factor"):
        default = fields.FIELDS[f"optim.{name}"].default
        if name not in schedule.keywords and not np.array_equal(optim[name], default):
            _log.warning(
                "the schedule %s takes no %s: config.optim.%s %s is not used", optim.schedule, name, name, optim[name]
            )
    warm_up = _warm_up(optim.warmup_epochs, epochs, steps_per_epoch)
    last = epochs * steps_per_epoch - 1

    def rate(step: int) -> float:
        step = min(step, last)
        return float(schedule(step)) * warm_up(step)  # a user's may return an array of one number

    return rate


def check(rate: Callable[[int], float], first: int, last: int, where: str) -> None:
    """Refuse a schedule whose rates are no numbers, at any step of its range.

    Args:
      rate: step -> learning rate.
      first: a step.
      last: the step before which the range ends.
      where: names the schedule.

    Raises:
      UserError: a rate that is negative or no number, or a schedule that fails.
    """
    for step in range(first, last):
        try:
            value = float(rate(step))
        except (Exception, SystemExit) as error:  # the schedule may be the user's, and raise anything
            raise UserError(f"{where} fails at step {step}: {described(error)}") from error
        if not 0 <= value < math.inf:
            raise UserError(f"{where} is {value} at step {step}; a learning rate is 0 or above")


@registry.Schedule(
    options={
        "learning_rate": registry.above(0),
        "decay_at": registry.Bound(lambda v: all(0 < at <= 1 for at in v), "fractions in 0..1"),
        "decay_factor": registry.within(0, 1),
    }
)
def steps(
    step: int,
    *,
    learning_rate: float,
    total_steps: int,
    decay_at: Sequence[float] = fields.FIELDS["optim.decay_at"].default,
    decay_factor: float = fields.FIELDS["optim.decay_factor"].default,
) -> float:
    """Return a learning rate that is multiplied by a factor at some steps.

    Args:
      step: counted from 0.
      learning_rate: at first.
      total_steps: of the run or stage.
      decay_at: fractions of it, after each of which the rate is multiplied.
      decay_factor: by which it is multiplied.
    """
    return learning_rate * decay_factor ** sum(step >= round(total_steps * fraction) for fraction in decay_at)


@registry.Schedule(options={"learning_rate": registry.above(0)})
def cosine(step: int, *, learning_rate: float, total_steps: int, steps_per_epoch: int) -> float:
    """Return a learning rate that falls towards 0 by the cosine and is constant within an epoch.

    In epoch e of E, counted from 0, it is learning_rate * (1 + cos(pi e / E)) / 2.

    Args:
      step: counted from 0.
      learning_rate: in the first epoch.
      total_steps: of the run or stage.
      steps_per_epoch: of the run.

    Returns:
      The learning rate.

    Source: dvlab-research/MiSLAS, train_stage2.py.
    """
    return learning_rate * (1 + math.cos(math.pi * (step // steps_per_epoch) / (total_steps / steps_per_epoch))) / 2


@registry.Schedule(
    options={"learning_rate": registry.above(0), "first_epochs": registry.above(0), "growth": registry.at_least(1)}
)
def cosine_restarts(
    step: int, *, learning_rate: float, steps_per_epoch: int, first_epochs: float = 10.0, growth: float = 2.0
) -> float:
    """Return a learning rate that falls to 0 by the cosine, step by step, again and again.

    Args:
      step: counted from 0.
      learning_rate: at the begin of each cycle.
      steps_per_epoch: of the run.
      first_epochs: length of the first cycle.
      growth: by which each cycle is longer than the one before.

    Returns:
      The learning rate.

    Source: Loshchilov, Hutter, SGDR, ICLR 2017, equation 5.
    """
    begin, length = 0.0, first_epochs * steps_per_epoch
    while step >= begin + length:
        begin, length = begin + length, length * growth
    return learning_rate * (1 + math.cos(math.pi * (step - begin) / length)) / 2


@registry.Schedule(options={"learning_rate": registry.above(0)})
def constant(step: int, *, learning_rate: float) -> float:
    """Return the same learning rate for every step.

    Args:
      step: unused.
      learning_rate: of each step.
    """
    return learning_rate


def _warm_up(warmup: float, epochs: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the factor of the learning rate as a function of the step.

    Args:
      warmup: W epochs. The factor rises by epoch, to e/W in epoch e counted from 1. It rises by step if W is below 2 or
        not a whole number. 0 means none. `USUAL_WARMUP` means 5, but in a run under 50 epochs its first tenth, by step.
      epochs: of the run.
      steps_per_epoch: of the run.

    Returns:
      A function step -> factor.
    """
    tenth = warmup == USUAL_WARMUP and epochs < 50
    warmup = 5 if warmup == USUAL_WARMUP else warmup
    if not warmup:
        return lambda step: 1.0
    if not tenth and warmup >= 2 and warmup == int(warmup):
        return lambda step: min(1.0, (step // steps_per_epoch + 1) / warmup)
    steps = max(1, epochs * steps_per_epoch // 10 if tenth else warmup * steps_per_epoch)
    return lambda step: min(1.0, (step + 1) / steps)


def with_warmup_as_it_is(config: dict) -> dict:
    """Replace the warm-up in a run's config by its effective value, so that configs of equal runs are equal.

    `USUAL_WARMUP` becomes 5 in a run of 50 epochs or more. An integer comes from a version in which the value was not
    a float: a shorter run took it for a tenth of the run, unless it was 0; in a longer run it was a staircase, and one
    epoch of a staircase is no warm-up.

    Args:
      config: nested dicts as in config.json.

    Returns:
      The config with a float; a config without a warm-up is returned unchanged.
    """
    optim, epochs = config.get("optim"), config.get("epochs")
    warmup = optim.get("warmup_epochs") if isinstance(optim, dict) else None
    if not isinstance(warmup, int | float) or not isinstance(epochs, int | float):
        return config
    if isinstance(warmup, int) and warmup and epochs < 50:
        warmup = USUAL_WARMUP
    if type(warmup) is int and warmup == 1 and epochs >= 50:
        warmup = 0.0
    if warmup == USUAL_WARMUP and epochs >= 50:
        warmup = 5.0
    return {**config, "optim": {**optim, "warmup_epochs": float(warmup)}}
