"""Optimisers by name: PyTorch's SGD, those of optax, or a user's."""

import logging
from typing import TYPE_CHECKING, Any

import jax
import optax

from unimix_jax import registry
from unimix_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_log = logging.getLogger(__name__)

_MASKS = ("mask", "weight_decay_mask")  # names of the argument in optax


@registry.Optimizer(is_direction=True)
def sgd(*, momentum: float, weight_decay: float, mask: Any = None) -> optax.GradientTransformation:
    """Return PyTorch's SGD without the learning rate, by which the step multiplies the update afterwards.

    v <- momentum * v + (gradient + weight_decay * parameter); the update is -learning_rate * v, so that a change of the
    learning rate does not change the momentum.

    Args:
      momentum: in 0..1.
      weight_decay: added to the gradient in proportion to the parameter: coupled decay.
      mask: parameters -> bools of the same tree, true where there is weight decay; None for all of them.

    Returns:
      The optax transformation.
    """
    return optax.chain(optax.add_decayed_weights(weight_decay, mask), optax.trace(momentum))


def build(optim: "ConfigDict", params: Any) -> optax.GradientTransformation:
    """Return the optimiser that a config names, as the direction of descent: the step subtracts a multiple of it.

    An optimiser is made for the learning rate 1, and the step multiplies its whole update, with decoupled decay, by
    the learning rate and the factors of the stage.

    Args:
      optim: config.optim with `name`, `options`, `momentum`, `weight_decay`, `decay_biases_and_norms`.
      params: of the network, arrays or shapes.

    Returns:
      The optax transformation.

    Raises:
      UserError: an unknown optimiser or option, or an optimiser that does not work on these parameters.
    """
    mask = None if optim.decay_biases_and_norms else _is_matrix
    context = {"learning_rate": 1.0, "momentum": optim.momentum, "weight_decay": optim.weight_decay}
    context |= dict.fromkeys(_MASKS, mask)
    function = registry.bind("optimizer", {"name": optim.name, **optim.options.to_dict()}, context)
    if "weight_decay" not in function.keywords and optim.weight_decay:
        _log.warning(
            "the optimiser %s takes no weight_decay: config.optim.weight_decay %g is not used",
            optim.name,
            optim.weight_decay,
        )
    if mask is not None and not any(name in function.keywords for name in _MASKS):
        raise UserError(
            f"config.optim.decay_biases_and_norms is False, but the optimiser {optim.name} takes no mask of its decay"
        )
    try:
        optimiser = function()
        if not registry.traits("optimizer", function).is_direction:
            optimiser = optax.chain(optimiser, optax.scale(-1.0))
        jax.eval_shape(lambda params: optimiser.update(params, optimiser.init(params), params), params)
    except Exception as error:  # the optimiser may be the user's, and raise anything
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UserError(
            f"the optimiser {optim.name} (config.optim) fails on the network's parameters: {why}"
        ) from error
    return optimiser


def _is_matrix(params: Any) -> Any:
    """Return which parameters have two axes or more: all but biases and those of norms."""
    return jax.tree.map(lambda p: p.ndim > 1, params)
