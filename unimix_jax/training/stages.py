"""Checks of the functions of a stage before the first step: a loss or a mixer may be the user's."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unimix_jax.errors import UserError, described
from unimix_jax.methods import mixing
from unimix_jax.methods.build import Stage

_LEVEL_DRAWS = 256  # seeds with which a mixer's level is drawn


def mixes_inside(stage: Stage, image_shape: tuple[int, int, int], size: int, levels: int) -> bool:
    """Return whether the mixer of a stage leaves the mixing to the network, at a level that the network has.

    Args:
      stage: with a mixer or without.
      image_shape: (H, W, C).
      size: images of a device's share.
      levels: of the network, at which it can mix: 0 is its input.

    Raises:
      UserError: see `check_functions`; or the mixer mixes at a level that the network does not have.
    """
    shapes = check_functions(stage, image_shape, size)
    if shapes is None or shapes.hidden is None:
        return False

    def level(seed):
        images, labels = jnp.zeros((size, *image_shape)), jnp.zeros(size, jnp.int32)
        return _mixed(stage.mixer, seed, images, images, labels, labels).hidden

    # The level may be random, so it is drawn with many seeds. XLA computes nothing but the level.
    drawn = np.unique(jax.jit(functools.partial(jax.lax.map, level))(np.arange(_LEVEL_DRAWS, dtype=np.uint32)))
    if len(unknown := np.setdiff1d(drawn, np.arange(levels))):
        has = f"levels {', '.join(map(str, range(levels)))}" if levels > 1 else "no level but its input, 0"
        who = f"the mixer {_name(stage.mixer)} of stage {stage.name!r}"
        raise UserError(f"{who} mixes at level {unknown[0]} of the network, which has {has}")
    return True


def check_functions(stage: Stage, image_shape: tuple[int, int, int], size: int) -> mixing.Mixed | None:
    """Refuse a loss or mixer of a stage that cannot be computed, or that returns something else than it must.

    Args:
      stage: of the method.
      image_shape: (H, W, C).
      size: images of a device's share.

    Returns:
      The shapes of what the mixer returns; None without one.

    Raises:
      UserError: a function fails on arrays of these shapes, or returns others than it must.
    """
    of, classes = jax.ShapeDtypeStruct, len(stage.class_weight)
    images, labels = of((size, *image_shape), jnp.float32), of((size,), jnp.int32)
    losses = _shapes_of("loss", stage, stage.loss, of((size, classes), jnp.float32), labels)
    if getattr(losses, "shape", None) != (size,) or not jnp.issubdtype(losses.dtype, jnp.floating):
        raise UserError(
            f"the loss {_name(stage.loss)} of stage {stage.name!r} returns {_shown(losses)}; it must return one value "
            f"per example, float32[{size}]"
        )
    if stage.mixer is None:
        return None

    mixed = functools.partial(_mixed, stage.mixer)
    shapes = _shapes_of("mixer", stage, mixed, of((), jnp.uint32), images, images, labels, labels)
    who = f"the mixer {_name(stage.mixer)} of stage {stage.name!r} returns"
    if not isinstance(shapes, mixing.Mixed):
        raise UserError(f"{who} {_shown(shapes)}; it must return Mixed")
    expected = {"image": images.shape, "label_a": labels.shape, "label_b": labels.shape, "weight": labels.shape}
    for name, shape in expected.items():
        value = getattr(shapes, name)
        if value is not None and (name, getattr(value, "shape", ())) != (name, shape):
            raise UserError(f"{who} Mixed with {name} {_shown(value)}; it must be {list(shape)}")
    if shapes.image is None or shapes.label_a is None or (shapes.label_b is None) != (shapes.weight is None):
        raise UserError(f"{who} Mixed without image or label_a, or with only one of label_b and weight")
    return shapes


def _mixed(mixer: Callable, seed: jax.Array, *arrays) -> Any:
    key = jax.random.key(seed)
    return mixer(mixing.Keys(key, jax.random.split(key, len(arrays[0]))), *arrays)


def _shapes_of(kind: str, stage: Stage, function: Callable, *arguments) -> Any:
    """Return the shapes of what a function of a stage returns; it may be the user's, and raise anything."""
    name = _name(getattr(stage, kind))
    try:
        return jax.eval_shape(function, *arguments)
    except UserError:
        raise
    except Exception as error:
        on = "images and labels" if kind == "mixer" else f"logits {list(arguments[0].shape)} and labels"
        where = f"the {kind} {name} of stage {stage.name!r} fails on a batch of {on}"
        raise UserError(f"{where}: {described(error)}") from error


def _name(function: Callable) -> str:
    function = getattr(function, "func", function)
    return getattr(function, "__name__", str(function))


def _shown(value: Any) -> str:
    """Return an array's type and shape for a sentence, or the type of another value."""
    return f"{value.dtype}{list(value.shape)}" if hasattr(value, "dtype") else type(value).__name__
