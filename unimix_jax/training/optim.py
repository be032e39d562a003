"""Optimisers by name: PyTorch's SGD, those of optax, or a user's."""

import functools
import logging
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unimix_jax import registry
from unimix_jax.config import fields
from unimix_jax.errors import UserError, described

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_log = logging.getLogger(__name__)

_MASKS = ("mask", "weight_decay_mask")  # names of the argument in optax
# Parameters that timm and the networks here keep out of the decay, by the last part of their names: those of norms, and
# what a transformer adds to its tokens. Biases of Flax's attention have two axes, position embeddings up to three.
_NOT_DECAYED = (
    "bias", "scale", "position", "positions", "pos_embed", "pos_embedding", "class_position", "class_token",
    "cls_token",
)  # fmt: skip
_STEPS = 3  # on which an optimiser at two rates is compared
_LARGE_RATE = 1024.0  # at which bounds of the step size show; a power of two, so that floats scale exactly


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
    the learning rate and the factors of the stage. One whose update at a rate is another one is refused.

    Args:
      optim: config.optim with `name`, `options`, `momentum`, `weight_decay`, `decay_biases_and_norms`.
      params: of the network, arrays or shapes.

    Returns:
      The optax transformation.

    Raises:
      UserError: an unknown optimiser or option, or an optimiser that does not work on these parameters, or whose
        update is not in proportion to the learning rate.
    """
    mask = None if optim.decay_biases_and_norms else is_decayed
    context = {"learning_rate": 1.0, "momentum": optim.momentum, "weight_decay": optim.weight_decay}
    context |= dict.fromkeys(_MASKS, mask)
    function = registry.bind("optimiser", {"name": optim.name, **optim.options.to_dict()}, context)
    if "weight_decay" not in function.keywords and optim.weight_decay:
        _log.warning(
            "the optimiser %s takes no weight_decay: config.optim.weight_decay %g is not used",
            optim.name,
            optim.weight_decay,
        )
    if "momentum" not in function.keywords and optim.momentum != fields.FIELDS["optim.momentum"].default:
        _log.warning(
            "the optimiser %s takes no momentum: config.optim.momentum %g is not used", optim.name, optim.momentum
        )
    if mask is not None and not any(name in function.keywords for name in _MASKS):
        raise UserError(
            f"config.optim.decay_biases_and_norms is False, but the optimiser {optim.name} takes no mask of its decay"
        )
    try:
        optimiser = function()
        if not hasattr(optimiser, "update"):
            returned = type(optimiser).__name__
            raise UserError(f"the optimiser {optim.name} returns {returned}; it must return a transformation of optax")
        if not registry.traits("optimiser", function).is_direction:
            optimiser = optax.chain(optimiser, optax.scale(-1.0))
        jax.eval_shape(lambda params: optimiser.update(params, optimiser.init(params), params), params)
        in_proportion = "learning_rate" not in function.keywords or _in_proportion(function, optim.learning_rate)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the optimiser may be the user's, and raise anything
        raise UserError(
            f"the optimiser {optim.name} (config.optim) fails on the network's parameters: {described(error)}"
        ) from error
    if not in_proportion:
        raise UserError(
            f"the update of the optimiser {optim.name} is not in proportion to the learning rate, by which the step "
            "multiplies the update at rate 1; choose another config.optim.name, or other config.optim.options"
        )
    return optimiser


def is_decayed(params: Any) -> Any:
    """Return which parameters have weight decay where biases and norms have none.

    Args:
      params: of a network, arrays or shapes.

    Returns:
      Bools of the same tree: false for parameters of one axis, and by name for biases, scales, position embeddings and
      class tokens.

    Source: timm, `param_groups_weight_decay` and `no_weight_decay` of VisionTransformer.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, p: p.ndim > 1 and getattr(path[-1], "key", "") not in _NOT_DECAYED, params
    )


def _in_proportion(function: functools.partial, learning_rate: float) -> bool:
    """Return whether the updates of an optimiser are those at the rate 1, times the rate, on a small tree.

    Args:
      function: which returns the optax transformation, bound to the learning rate 1.
      learning_rate: of the config.
    """
    params = {"kernel": np.cos(np.arange(6, dtype=np.float32)).reshape(3, 2), "bias": np.float32([0.5, -2])}
    slopes = [jax.tree.map(lambda p, at=step: np.cos(at + 3 * p), params) for step in range(_STEPS)]

    @jax.jit
    def updates(params, slopes):
        def at_rate(rate):
            optimiser = function(learning_rate=rate)
            state, steps = optimiser.init(params), []
            for slope in slopes:
                # The parameters stay: how far they move is the rate's, which the step sets.
                update, state = optimiser.update(slope, state, params)
                steps.append(jax.tree.map(lambda u: u / rate, update))
            return steps

        return [at_rate(rate) for rate in (1.0, learning_rate, _LARGE_RATE)]

    def alike(expected, other) -> bool:
        # Single floats, in a few operations that the rate is put into at another place.
        return bool(jnp.allclose(expected, other, rtol=1e-4, atol=1e-6))

    expected, *others = updates(params, slopes)
    return all(jax.tree.all(jax.tree.map(alike, expected, other)) for other in others)
