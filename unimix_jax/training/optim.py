"""The optimiser: PyTorch's SGD."""

import optax


def sgd(momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """SGD as PyTorch has it, but for the learning rate, which the step multiplies in afterwards.

    v <- momentum * v + (gradient + weight_decay * parameter), on every parameter; the update is
    -learning_rate * v, so that a change of the rate does not reach into the momentum.
    """
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.trace(momentum))
