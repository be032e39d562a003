"""The optimiser, PyTorch's SGD, and the learning rate by epoch."""

import math
from collections.abc import Callable

import optax

USUAL_WARMUP = -1.0  # config.optim.warmup_epochs that nobody has set


def sgd(momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """SGD as PyTorch has it, but for the learning rate, which the step multiplies in afterwards.

    v <- momentum * v + (gradient + weight_decay * parameter), on every parameter; the update is
    -learning_rate * v, so that a change of the rate does not reach into the momentum.
    """
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.trace(momentum))


def learning_rate(optim, epochs: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the learning rate as a function of the step (from 0): falling in steps, or by the cosine.

    With the defaults and 200 epochs, counted from 1: .1 * e/5 up to epoch 5, .1 up to 160, .001 up to
    180, then .00001.

    Args:
      optim: `learning_rate`; `warmup_epochs`, see `_warm_up`; `schedule`: "steps", with `decay_at` (fractions of the
        run; after each the rate is multiplied by `decay_factor` once more), or "cosine", see `cosine`.
      epochs: of the run.
      steps_per_epoch: steps of one.

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
      warmup: W epochs. The factor rises by epoch, to e/W in epoch e counted from 1; by step where that is no
        staircase: below 2 epochs, or for no whole number of them. 0 for none; `USUAL_WARMUP` for 5, but in a run
        under 50 epochs for its first tenth, by step.
      epochs, steps_per_epoch: of the run.
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
    """Return a run's config with the warm-up that it has, such that configs of equal runs are equal.

    What `USUAL_WARMUP` stands for is put in its place in a run of 50 epochs or more. A whole number without a point
    is from before the value was a float: a shorter run took it for a tenth of itself, unless it was 0; in a longer one
    it was a staircase, of which a single epoch is none.

    Args:
      config: nested dicts as in config.json; one without a warm-up comes back as it is.
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
    """Return a rate that falls from `peak` towards 0 over the steps first..last, constant within an epoch.

    In epoch e of E, counted from 0, it is peak * (1 + cos(pi e / E)) / 2.

    Source: dvlab-research/MiSLAS, train_stage2.py.
    """
    epochs = (last - first) / steps_per_epoch

    def at(step: int) -> float:
        epoch = (step - first) // steps_per_epoch
        return peak * (1 + math.cos(math.pi * epoch / epochs)) / 2

    return at
