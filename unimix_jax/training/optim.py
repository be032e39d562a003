"""The optimiser, PyTorch's SGD, and the learning rate by epoch."""

import math
from collections.abc import Callable

import optax


def sgd(momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """SGD as PyTorch has it, but for the learning rate, which the step multiplies in afterwards.

    v <- momentum * v + (gradient + weight_decay * parameter), on every parameter; the update is
    -learning_rate * v, so that a change of the rate does not reach into the momentum.
    """
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.trace(momentum))


def learning_rate(optim, epochs: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the learning rate as a function of the step (from 0): falling in steps, or by the cosine.

    With the defaults and 200 epochs, counted from 1: .1 * e/5 up to epoch 5, .1 up to 160, .001 up to
    180, then .00001. A run of less than 50 epochs warms up by step over its first tenth instead.

    Args:
      optim: `learning_rate`, `warmup_epochs`, `schedule`: "steps", with `decay_at` (fractions of the run; after
        each the rate is multiplied by `decay_factor` once more), or "cosine", see `cosine`.
      epochs: of the run.
      steps_per_epoch: steps of one.

    Source: appendix C.1 of the paper's supplement; kaidic/LDAM-DRW, cifar_train.py.
    """
    total = epochs * steps_per_epoch
    warm_steps = max(1, total // 10)
    ends = [round(total * fraction) for fraction in optim.decay_at]
    falling = cosine(optim.learning_rate, 0, total, steps_per_epoch)

    def at(step: int) -> float:
        rate = optim.learning_rate * optim.decay_factor ** sum(step >= end for end in ends)
        if optim.schedule == "cosine":
            rate = falling(step)
        if not optim.warmup_epochs:
            return rate
        if epochs < 50:
            return rate * min(1.0, (step + 1) / warm_steps)
        return rate * min(1.0, (step // steps_per_epoch + 1) / optim.warmup_epochs)

    return at


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
