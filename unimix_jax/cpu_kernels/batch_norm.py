"""Layers of a network for a CPU: their values by `native` programs, and gradients of their own.

The same numbers as the plain layers' to rounding; a step of ResNet-32 takes .6 of the time (benchmarks/README.md).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from unimix_jax.cpu_kernels import convolution as native


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x, kernel, stride: int):
    """Convolve [N, H, W, I] with [S, S, I, O], S odd, padded by half of it; `native.takes` the type and O."""
    pad = kernel.shape[0] // 2
    return native.forward(x, kernel, stride, (pad, pad))


def _convolve_forward(x, kernel, stride):
    return convolve(x, kernel, stride), (x, kernel)


def _convolve_backward(stride, saved, g):
    x, kernel = saved
    return _input_gradient(x, kernel, g, stride), native.kernel_gradient(x, g, stride, kernel.shape[0])


convolve.defvjp(_convolve_forward, _convolve_backward)


def _input_gradient(x, kernel, g, stride: int):
    """Return the gradient of a convolution's input: a convolution of the output's gradient, where there is one."""
    size, pad, inputs = kernel.shape[0], kernel.shape[0] // 2, kernel.shape[2]
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    if stride == 1 and native.takes(x.dtype, inputs):
        return native.forward(g, turned, 1, (pad, pad))
    if stride == 2 and size == 1 and native.takes(x.dtype, inputs):
        spread = native.forward(g, turned, 1, (0, 0))
        ends = [(0, side - (2 * count - 1), 1) for side, count in zip(x.shape[1:3], g.shape[1:3], strict=True)]
        return lax.pad(spread, jnp.zeros((), g.dtype), ((0, 0, 0), *ends, (0, 0, 0)))
    if stride == 2 and size == 3 and x.shape[1] % 2 == x.shape[2] % 2 == 0 and native.takes(x.dtype, inputs):
        # Even rows of the input meet the middle row of the kernel only, odd ones the first and the last; columns alike.
        # So each of the four kinds of pixel is a convolution by 2 x 2 taps, and one makes them all.
        (n, h, w, outputs), taps = g.shape, _taps_of_phases(_taps_of_phases(kernel, 1), 2)
        taps = taps.transpose(1, 3, 5, 0, 2, 4).reshape(2, 2, outputs, 4 * inputs)
        phases = native.forward(g, taps, 1, (0, 1)).reshape(n, h, w, 2, 2, inputs)
        return phases.transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * h, 2 * w, inputs)

    def plain(x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=numbers
        )

    return jax.linear_transpose(plain, x)(g)[0]  # the stem, whose input needs none; odd sides


def _taps_of_phases(kernel, axis: int):
    """Turn an axis of 3 taps into two in front, (phase, tap): (middle, none) and (last, first)."""
    first, middle, last = (lax.index_in_dim(kernel, i, axis, keepdims=False) for i in range(3))
    return jnp.stack([jnp.stack([middle, jnp.zeros_like(middle)]), jnp.stack([last, first])])


@jax.custom_vjp
def max_pool(x):
    """Take the largest of each 3 x 3 window at stride 2, padded by 1; the first largest one gets the gradient."""
    return native.max_pool(x)[0]


def _max_pool_forward(x):
    out, place = native.max_pool(x)
    return out, (place, x)


def _max_pool_backward(saved, g):
    place, x = saved  # of x, only the shape
    return (native.max_pool_gradient(place, g, x.shape),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def normalise(x, scale, bias, residual, activate: bool, axis: str | None, epsilon: float):
    """Normalise by the batch's statistics, add a residual, cut at 0: `layers.normalise` with its own gradient.

    Only x and what comes out are kept for the backward pass, and XLA cannot compute either of them again. No gradient
    goes through the statistics that are returned, which are for the running ones.
    """
    return _normalise_forward(x, scale, bias, residual, activate, axis, epsilon)[0]


def _normalise_forward(x, scale, bias, residual, activate, axis, epsilon):
    over, size = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    sums = x.sum(over), (x * x).sum(over)
    if axis is not None:
        sums, size = lax.psum(sums, axis), size * lax.axis_size(axis)
    mean = sums[0] / size
    variance = jnp.maximum(sums[1] / size - mean * mean, 0)
    inverse = lax.rsqrt(variance + epsilon)
    out = x * (scale * inverse) + (bias - mean * scale * inverse)
    out = out if residual is None else out + residual
    out = lax.optimization_barrier(jnp.where(out <= 0, 0, out) if activate else out)
    return (out, mean, variance), (x, out if activate else None, mean, inverse, scale, residual is None)


def _normalise_backward(activate, axis, epsilon, saved, cotangents):
    x, out, mean, inverse, scale, alone = saved
    over, size = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    g = cotangents[0]
    if activate:
        g = lax.optimization_barrier(jnp.where(out <= 0, 0, g))
    bias_gradient = g.sum(over)
    scale_gradient = ((g * x).sum(over) - mean * bias_gradient) * inverse
    # Those of the parameters stay this device's, for the step adds them up over the devices; those of the statistics
    # are of the whole batch, for each device's input moved them.
    sums = bias_gradient, scale_gradient
    if axis is not None:
        sums, size = lax.psum(sums, axis), size * lax.axis_size(axis)
    factor = scale * inverse
    slope = -factor * inverse * sums[1] / size
    offset = -factor * sums[0] / size - slope * mean
    x_gradient = lax.optimization_barrier(factor * g + (slope * x + offset))
    return x_gradient, scale_gradient, bias_gradient, None if alone else g


normalise.defvjp(_normalise_forward, _normalise_backward)
