"""Checks of what losses and mixers are given. They add nothing to a compiled program.

Shapes and types are checked always. Values can be read where an array is concrete: not inside of `jit`, `grad` or
`vmap`, where labels are traced and a class that does not exist goes unseen.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from unimix_jax import priors, registry
from unimix_jax.errors import UserError


def is_known(value: Any) -> bool:
    """Return whether the values of an array can be read here: it is not traced, and not in part on other machines."""
    if isinstance(value, jax.core.Tracer):
        return False
    return not isinstance(value, jax.Array) or value.is_fully_addressable


def checked_labels(labels: ArrayLike, what: str = "labels", *, classes: int | None = None) -> jax.Array:
    """Return labels as an array of JAX after a check that they are classes.

    Args:
      labels: int[B].
      what: their name in the sentence of an error.
      classes: K; None if it is not known.

    Returns:
      int[B].

    Raises:
      UserError: another shape or type, or, of labels that are not traced, one outside of 0..K-1.
    """
    if is_known(labels):
        labels = priors.checked_labels(labels, what, classes=classes)
    elif labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer) or not len(labels):
        raise UserError(f"{what} are {labels.dtype}{list(labels.shape)}; {priors.LABELS_ARE}")
    return jnp.asarray(labels)


def checked_batch(logits: ArrayLike, labels: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Return logits and labels of a batch after a check that they fit together.

    Args:
      logits: float[B, K].
      labels: int[B].

    Returns:
      Both as arrays of JAX.

    Raises:
      UserError: another shape or type, or, of labels that are not traced, one outside of 0..K-1.
    """
    logits = _array(logits, "logits")
    if logits.ndim != 2 or not (jnp.issubdtype(logits.dtype, jnp.floating) or logits.dtype.kind in "iu"):
        raise UserError(f"logits are {logits.dtype}{list(logits.shape)}; they must be numbers [B, K]")
    labels = checked_labels(labels, classes=logits.shape[1])
    if len(labels) != len(logits):
        raise UserError(f"there are {len(logits)} rows of logits, but {len(labels)} labels; each row needs one label")
    return logits, labels


def class_numbers(values: ArrayLike, what: str, classes: int, *, zeros: bool = False) -> np.ndarray:
    """Return counts or a prior, which must be known when a program is made, after a check.

    Args:
      values: [K].
      what: their name in the sentence of an error.
      classes: K, of the logits.
      zeros: whether some of them may be 0.

    Returns:
      float64[K].

    Raises:
      UserError: traced values, another length, or a number that is negative, not finite, or 0.
    """
    if isinstance(values, jax.core.Tracer):
        raise UserError(
            f"{what} is traced by a transformation of JAX such as jit; it must be known before: close over it, as "
            f"functools.partial(loss, {what}=...) does"
        )
    return priors.checked_counts(values, what, classes=classes, zeros=zeros)


def class_array(values: ArrayLike, what: str, classes: int | None = None, dtype: Any = None) -> jax.Array:
    """Return numbers of classes, which may be traced, after a check.

    Args:
      values: [K], each 0 or above.
      what: their name in the sentence of an error.
      classes: K; None if it is not known.
      dtype: of the result; None for that of the values.

    Returns:
      An array of JAX.

    Raises:
      UserError: another length, or, of values that are not traced, a number that is negative or not finite.
    """
    if is_known(values):
        priors.checked_counts(values, what, classes=classes)
    elif values.ndim != 1 or len(values) != (classes or len(values)):
        raise UserError(
            f"{what} has the shape {list(values.shape)}; it must be [{classes or 'K'}], a number for each class"
        )
    return jnp.asarray(values, dtype)


def check_options(function: Any, **options: Any) -> None:
    """Refuse values of options that the traits of a loss or mixer do not allow; traced ones cannot be checked.

    Args:
      function: an entry of the registry.
      **options: some of its options, by name.

    Raises:
      UserError: the value, and what it must be.
    """
    known = {name: value for name, value in options.items() if not isinstance(value, jax.core.Tracer)}
    registry.check_options(function, **known)


def static(value: float, what: str) -> float:
    """Return a number that must be known when a program is made.

    Args:
      value: a Python number.
      what: its name in the sentence of an error.

    Raises:
      UserError: it is traced.
    """
    if isinstance(value, jax.core.Tracer):
        raise UserError(
            f"{what} is traced by a transformation of JAX such as jit; it must be a Python number: bind it before by "
            "functools.partial, or name it in static_argnames"
        )
    return value


def _array(values: ArrayLike, what: str) -> jax.Array:
    try:
        return jnp.asarray(values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what} are no array of numbers: {' '.join(str(error).split())}") from None
