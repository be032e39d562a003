"""Batch normalisation in training, with a gradient of its own: XLA's operations in an order that a CPU is fast at."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, residual: jax.Array, relu: bool, axis: str | None, epsilon: float
) -> Any:
    """Normalise by the statistics of the batch, add a residual, apply ReLU, as `models.ops.batch_norm` does.

    Only x and the result are kept for the backward pass, and XLA cannot compute either of them again. No gradient
    goes through the statistics that are returned. It computes in float32, and in float64 for float64 activations.

    Args:
      x: float[..., C].
      scale: float[C].
      bias: float[C].
      residual: as x, or None.
      relu: whether ReLU follows.
      axis: mesh axis whose devices share the batch; None for one device.
      epsilon: added to the variance.

    Returns:
      The result, as x; the mean and the biased variance of the batch, float[C] each.
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    residual = None if residual is None else residual.astype(dtype)
    out, mean, variance = _normalised(x.astype(dtype), scale, bias, residual, relu, axis, epsilon)
    return out.astype(x.dtype), mean, variance


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _normalised(x, scale, bias, residual, relu, axis, epsilon):
    return _forward(x, scale, bias, residual, relu, axis, epsilon)[0]


def _forward(x, scale, bias, residual, relu, axis, epsilon):
    over, size = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    sums = x.sum(over), (x * x).sum(over)
    if axis is not None:
        sums, size = lax.psum(sums, axis), size * lax.axis_size(axis)
    mean = sums[0] / size
    variance = jnp.maximum(sums[1] / size - mean * mean, 0)
    inverse = lax.rsqrt(variance + epsilon)
    out = x * (scale * inverse) + (bias - mean * scale * inverse)
    out = out if residual is None else out + residual
    out = lax.optimization_barrier(jnp.where(out <= 0, 0, out) if relu else out)
    return (out, mean, variance), (x, out if relu else None, mean, inverse, scale, residual is None)


def _backward(relu, axis, epsilon, saved, cotangents):
    x, out, mean, inverse, scale, alone = saved
    over, size = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    g = cotangents[0]
    if relu:
        g = lax.optimization_barrier(jnp.where(out <= 0, 0, g))
    bias_gradient = g.sum(over)
    scale_gradient = ((g * x).sum(over) - mean * bias_gradient) * inverse
    # The gradients of the parameters stay this device's, because the step adds them up over the devices. Those of the
    # statistics are of the whole batch, because the input of each device moved the statistics.
    sums = bias_gradient, scale_gradient
    if axis is not None:
        sums, size = lax.psum(sums, axis), size * lax.axis_size(axis)
    factor = scale * inverse
    slope = -factor * inverse * sums[1] / size
    offset = -factor * sums[0] / size - slope * mean
    x_gradient = lax.optimization_barrier(factor * g + (slope * x + offset))
    return x_gradient, scale_gradient, bias_gradient, None if alone else g


_normalised.defvjp(_forward, _backward)
