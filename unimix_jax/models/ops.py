"""The operations that take the time of a network, and the choice of the backend that computes them.

Layers call `conv2d`, `max_pool` and `batch_norm`; no layer and no network knows a backend. The backend "xla" computes
everything with XLA's own operations, on all devices. `register` adds others, and `use` says which one computes the
operations that are traced inside of it. The choice is part of the key of `jax.jit`'s cache: a function that was
compiled with one backend is compiled again for another, so that one process can run both.

A choice for each platform by `lax.platform_dependent` inside of the implementations is not used, though it costs
nothing on a CPU: the gradient of ResNet-32 at batch 128 with such a choice in each convolution, forwards and backwards,
takes 1.00 of the time without (median of 12, .78 to 1.08) and has the same bits. But it cannot replace the choice that
is made here: only a trial tells whether a processor can run a backend's programs, and a user may refuse them. And a
rule with two branches has one set of residuals, so XLA's own gradients of pooling and normalisation, and with them the
bits of results on all devices, would change.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from unimix_jax.errors import one_of

OPERATIONS = ("conv2d", "max_pool", "batch_norm")  # what a backend can compute
_DEFAULT = "xla"
_backend = jax.make_user_context(_DEFAULT)


def register(name: str, implementations: Mapping[str, Callable]) -> None:
    """Add a backend, or replace it.

    An implementation has the arguments of the function of this module with its name. It returns `NotImplemented` for
    arguments that it does not support, such as a dtype; XLA computes these.

    Args:
      name: of the backend, as `use` takes it; not "xla".
      implementations: a function for each operation that the backend computes, by its name in `OPERATIONS`; XLA
        computes the others.

    Raises:
      ValueError: "xla" would be replaced, or there is no such operation.
    """
    if name == _DEFAULT:
        raise ValueError(f"the backend {name!r} cannot be replaced")
    if unknown := set(implementations) - set(OPERATIONS):
        raise ValueError(f"there is no operation {min(unknown)!r}; a backend computes some of {', '.join(OPERATIONS)}")
    _BACKENDS[name] = dict(implementations)


def backends() -> tuple[str, ...]:
    """Return the names of the backends that are registered in this process."""
    return tuple(_BACKENDS)


@contextlib.contextmanager
def use(backend: str) -> Iterator[None]:
    """Compute the operations that are called, or traced by `jax.jit`, inside of this context with a backend.

    Args:
      backend: a name that is registered.

    Raises:
      UserError: it is not registered.
    """
    with _backend(one_of("backend (config.parallel.ops)", backend, _BACKENDS)):
        yield


def using(backend: str, function: Callable) -> Callable:
    """Return a function that enters `use(backend)` for each call.

    Args:
      backend: a name that is registered.
      function: such as the `apply` of a network.
    """

    @functools.wraps(function)
    def computed(*arguments, **keywords) -> Any:
        with use(backend):
            return function(*arguments, **keywords)

    return computed


def conv2d(x: jax.Array, kernel: jax.Array, stride: int = 1, groups: int = 1) -> jax.Array:
    """Convolve images with a square kernel, padded by half of its size on every side.

    PyTorch pads so; "SAME" would pad a 3 x 3 kernel at stride 2 by (0, 1).

    Args:
      x: float[N, H, W, I].
      kernel: float[S, S, I / groups, O] of the same dtype; S is odd.
      stride: of both axes.
      groups: of channels, each of which is convolved by itself.

    Returns:
      float[N, ceil(H / stride), ceil(W / stride), O].
    """
    return _computed("conv2d", x, kernel, stride, groups)


def max_pool(x: jax.Array) -> jax.Array:
    """Take the largest number of each 3 x 3 window at stride 2, padded by 1.

    Args:
      x: float[N, H, W, C].

    Returns:
      float[N, ceil(H / 2), ceil(W / 2), C].
    """
    return _computed("max_pool", x)


def batch_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    residual: jax.Array | None = None,
    relu: bool = False,
    axis: str | None = None,
    epsilon: float = 1e-5,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalise by the statistics of the batch, add a residual, apply ReLU: batch normalisation in training.

    One operation does all of this, because a backend can then read the activations once. It computes in the dtype of
    `widened`.

    Args:
      x: float[..., C]; statistics are taken over all axes but the last.
      scale: float[C].
      bias: float[C].
      residual: as x, or None.
      relu: whether ReLU follows.
      axis: mesh axis whose devices share the batch; None for one device.
      epsilon: added to the variance.

    Returns:
      The result, as x; the mean and the biased variance of the batch, float[C] each. Backends need not differentiate
      the statistics, which are for the running ones.
    """
    return _computed("batch_norm", x, scale, bias, residual, relu, axis, epsilon)


def batch_norm_inference(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    mean: jax.Array,
    variance: jax.Array,
    residual: jax.Array | None = None,
    relu: bool = False,
    epsilon: float = 1e-5,
) -> jax.Array:
    """Normalise by given statistics, add a residual, apply ReLU: batch normalisation in evaluation.

    XLA fuses this into one pass over the activations, so no backend computes it. It computes in the dtype of `widened`.

    Args:
      x: float[..., C].
      scale: float[C].
      bias: float[C].
      mean: float[C].
      variance: float[C].
      residual: as x, or None.
      relu: whether ReLU follows.
      epsilon: added to the variance.

    Returns:
      The result, as x.
    """
    dtype, x, residual = x.dtype, widened(x), widened(residual)
    factor = scale * jax.lax.rsqrt(variance + epsilon)
    out = x * factor + (bias - mean * factor)
    out = out if residual is None else out + residual
    return (select_relu(out) if relu else out).astype(dtype)


def widened(x: jax.Array | None) -> jax.Array | None:
    """Return activations in the dtype in which a normalisation computes: float32, or their own if it has more bits.

    Args:
      x: float[...], or None.
    """
    return None if x is None else x.astype(jnp.promote_types(x.dtype, jnp.float32))


def select_relu(x: jax.Array) -> jax.Array:
    """Return ReLU(x), written so that XLA's CPU backend computes it once.

    XLA fuses a `maximum`, which reads one large operand, and everything before it into each of its consumers. It
    stores a select, which reads two. A step of ResNet-32 takes .65 of the time. The comparison is `x <= 0`, so that
    nan stays nan and a run that diverges is noticed.

    Args:
      x: float[...].
    """
    return jnp.where(x <= 0, jnp.zeros((), x.dtype), x)


def _computed(operation: str, *arguments):
    """Return what the current backend computes, or XLA where the backend does not support the arguments."""
    implementation = _BACKENDS[_backend.value].get(operation)
    result = NotImplemented if implementation is None else implementation(*arguments)
    return _XLA[operation](*arguments) if result is NotImplemented else result


def xla_conv2d(x: jax.Array, kernel: jax.Array, stride: int, groups: int) -> jax.Array:
    """Convolve as `conv2d` does, by XLA whatever the backend; backends build their own gradients on it.

    Args:
      x: float[N, H, W, I].
      kernel: float[S, S, I / groups, O] of the same dtype; S is odd.
      stride: of both axes.
      groups: of channels.

    Returns:
      float[N, ceil(H / stride), ceil(W / stride), O].
    """
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _xla_max_pool(x):
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


def _xla_batch_norm(x, scale, bias, residual, relu, axis, epsilon):
    dtype, x, residual = x.dtype, widened(x), widened(residual)
    mean, variance = batch_statistics(x, axis)
    return batch_norm_inference(x, scale, bias, mean, variance, residual, relu, epsilon).astype(dtype), mean, variance


def batch_statistics(x: jax.Array, axis: str | None) -> tuple[jax.Array, jax.Array]:
    """Return the mean and the biased variance of the channels of a batch.

    Args:
      x: float[..., C].
      axis: mesh axis whose devices share the batch; None for one device.

    Returns:
      Two float[C].
    """
    over, size = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    sums = x.sum(over), (x * x).sum(over)
    if axis is not None:
        sums, size = jax.lax.psum(sums, axis), size * jax.lax.axis_size(axis)
    mean = sums[0] / size
    return mean, jnp.maximum(sums[1] / size - mean * mean, 0)


_XLA = {"conv2d": xla_conv2d, "max_pool": _xla_max_pool, "batch_norm": _xla_batch_norm}
_BACKENDS: dict[str, dict[str, Callable]] = {_DEFAULT: _XLA}
