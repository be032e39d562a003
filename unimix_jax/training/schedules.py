"""Learning rates as functions of the step."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ml_collections import ConfigDict

USUAL_WARMUP = -1.0  # the default of config.optim.warmup_epochs


def learning_rate(optim: "ConfigDict", epochs: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the learning rate as a function of the step, counted from 0: it falls in steps or by the cosine.

    With the defaults and 200 epochs, counted from 1: .1 * e/5 up to epoch 5, .1 up to 160, .001 up to 180, then
    .00001.

    Args:
      optim: config.optim with `learning_rate`; `warmup_epochs`, see `_warm_up`; `schedule`: "steps", with `decay_at`
        (fractions of the run, after each of which the rate is multiplied by `decay_factor`), or "cosine".
      epochs: of the run.
      steps_per_epoch: of the run.

    Returns:
      A function step -> learning rate.

    Source: appendix C.1 of the paper's supplement; kaidic/LDAM-DRW, cifar_train.py.
    """
    total = epochs * steps_per_epoch
    warm_up = _warm_up(optim.warmup_epochs, epochs, steps_per_epoch)
    ends = [round(total * fraction) for fraction in optim.decay_at]
    falling = cosine(optim.learning_rate, 0, total, steps_per_epoch)

    def at(step: int) -> float:
        rate = optim.learning_rate * optim.decay_factor ** sum(step >= end for end in ends)
        if optim.schedule == "cosine":
            rate = falling(step)
        return rate * warm_up(step)

    return at


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


def cosine(peak: float, first: int, last: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Return a learning rate that falls from `peak` towards 0 over a stage and is constant within an epoch.

    In epoch e of E, counted from 0, it is peak * (1 + cos(pi e / E)) / 2.

    Args:
      peak: the rate in the first epoch.
      first: the step before the first one of the stage.
      last: the last step of the stage.
      steps_per_epoch: of the run.

    Returns:
      A function step -> learning rate.

    Source: dvlab-research/MiSLAS, train_stage2.py.
    """
    epochs = (last - first) / steps_per_epoch

    def at(step: int) -> float:
        epoch = (step - first) // steps_per_epoch
        return peak * (1 + math.cos(math.pi * epoch / epochs)) / 2

    return at
