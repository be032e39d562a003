"""Checks of the functions of a stage before the first step: a loss or a mixer may be the user's."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unimix_jax.data import sampling
from unimix_jax.errors import UserError, described, shown
from unimix_jax.methods import mixing
from unimix_jax.methods.build import Method, Stage

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
    with _described_failures("loss", stage, f"a batch of logits [{size}, {classes}] and labels"):
        losses = jax.eval_shape(stage.loss, of((size, classes), jnp.float32), labels)
    if getattr(losses, "shape", None) != (size,) or not jnp.issubdtype(losses.dtype, jnp.floating):
        raise UserError(
            f"the loss {_name(stage.loss)} of stage {stage.name!r} returns {shown(losses)}; it must return one value "
            f"per example, float32[{size}]"
        )
    if stage.mixer is None:
        return None

    mixed = functools.partial(_mixed, stage.mixer)
    with _described_failures("mixer", stage, "a batch of images and labels"):
        shapes = jax.eval_shape(mixed, of((), jnp.uint32), images, images, labels, labels)
    who = f"the mixer {_name(stage.mixer)} of stage {stage.name!r} returns"
    if not isinstance(shapes, mixing.Mixed):
        raise UserError(f"{who} {shown(shapes)}; it must return Mixed")
    expected = {"image": images.shape, "label_a": labels.shape, "label_b": labels.shape, "weight": labels.shape}
    for name, shape in expected.items():
        value = getattr(shapes, name)
        if value is not None and (name, getattr(value, "shape", ())) != (name, shape):
            raise UserError(f"{who} Mixed with {name} {shown(value)}; it must be {list(shape)}")
    if shapes.image is None or shapes.label_a is None or (shapes.label_b is None) != (shapes.weight is None):
        raise UserError(f"{who} Mixed without image or label_a, or with only one of label_b and weight")
    return shapes


def check_samplers(stage: Stage, class_index: sampling.ClassIndex, batch_size: int) -> None:
    """Refuse a sampler or pair sampler of a stage that does not choose a batch of positions.

    A pair sampler that asks for the table of nearest images is not tried: finding them takes long.

    Args:
      stage: of the method.
      class_index: of the training labels.
      batch_size: B, of the whole batch.

    Raises:
      UserError: a function fails, or returns something else than positions.
    """

    def check_positions(kind, values, what):
        size, array = len(class_index.labels), np.asarray(values)
        if array.shape != (batch_size,) or not np.issubdtype(array.dtype, np.integer):
            returned = f"returns {what} {shown(values)}"
        elif not ((array >= 0) & (array < size)).all():
            returned = f"returns {what} from {array.min()} to {array.max()}"
        else:
            return
        who = f"the {kind} {_name(getattr(stage, kind))} of stage {stage.name!r}"
        raise UserError(f"{who} {returned}; they must be {batch_size} whole numbers in 0..{size - 1}")

    with _described_failures("sampler", stage, "the first step"):
        index = stage.sampler(class_index, seed=0, step=stage.first, batch_size=batch_size)
    check_positions("sampler", index, "positions")
    if stage.pair_sampler is None or stage.neighbours:
        return
    with _described_failures("pair_sampler", stage, "the first step"):
        pair = stage.pair_sampler(class_index, np.asarray(index), seed=0, step=stage.first)
    if not (isinstance(pair, tuple) and len(pair) == 2):
        who = f"the pair_sampler {_name(stage.pair_sampler)} of stage {stage.name!r}"
        raise UserError(f"{who} returns {shown(pair)}; it must return (positions of partners, their views)")
    check_positions("pair_sampler", pair[0], "positions of partners")


def check_posthoc(method: Method, head: Any, validation: bool) -> None:
    """Refuse a change of trained logits that fails or returns something else, on a few logits of zeros.

    Args:
      method: of the run.
      head: its parameters.
      validation: whether the run has a validation split.

    Raises:
      UserError: the function fails, or does not return logits and what it chose.
    """
    if method.posthoc is None:
        return
    classes, who = len(method.test_prior), f"the posthoc function {_name(method.posthoc)}"
    logits, labels = np.zeros((2 * classes, classes), np.float32), np.arange(2 * classes, dtype=np.int32) % classes
    try:
        result = method.posthoc(logits, head, validation=(logits, labels) if validation else None)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{who} fails on logits {list(logits.shape)}: {described(error)}") from error
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        raise UserError(f"{who} returns {shown(result)}; it must return (logits, chosen options by name)")
    if np.shape(result[0]) != logits.shape:
        raise UserError(f"{who} returns logits {list(np.shape(result[0]))} for {list(logits.shape)}")


@contextlib.contextmanager
def _described_failures(kind: str, stage: Stage, on: str) -> Iterator[None]:
    """Turn whatever a function of a stage raises into a sentence; it may be the user's."""
    function = getattr(stage, kind)
    who = f"the {kind} {_name(function)} of stage {stage.name!r}"
    if inspect.isclass(getattr(function, "func", function)):
        raise UserError(f"{who} is a class; it must be a function")
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{who} fails on {on}: {described(error)}") from error


def _mixed(mixer: Callable, seed: jax.Array, *arrays) -> Any:
    key = jax.random.key(seed)
    return mixer(mixing.Keys(key, jax.random.split(key, len(arrays[0]))), *arrays)


def _name(function: Callable) -> str:
    function = getattr(function, "func", function)
    return getattr(function, "__name__", str(function))
