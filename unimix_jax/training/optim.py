"""The optimiser: PyTorch's SGD."""

import optax


def sgd(momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """Return PyTorch's SGD without the learning rate, by which the step multiplies the update afterwards.

    v <- momentum * v + (gradient + weight_decay * parameter), on every parameter; the update is -learning_rate * v, so
    that a change of the learning rate does not change the momentum.

    Args:
      momentum: in 0..1.
      weight_decay: added to the gradient in proportion to the parameter, on every parameter.

    Returns:
      The optax transformation.
    """
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.trace(momentum))
