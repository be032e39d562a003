"""Convolutions and their gradients.

A vector holds neighbouring output channels. The inner loops multiply a few vectors with single numbers, one fused
multiply-add for each number that is loaded, and keep their sums in registers. XLA's own convolutions reach .4 to .9 of
the speed of such a loop, its gradients of kernels .3 to .8 (benchmarks/README.md). Values do not depend on the number
of threads.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from unimix_jax.cpu_kernels import convolution_programs as programs
from unimix_jax.cpu_kernels import executable

_PARTS = 8  # of a batch for the gradient of a small kernel; constant, because the order of a sum changes its last bits


def conv2d(x: jax.Array, kernel: jax.Array, stride: int, groups: int, *, threads: int) -> Any:
    """Convolve images with a square kernel, as `models.ops.conv2d` does.

    Args:
      x: float[N, H, W, I].
      kernel: float[S, S, I / groups, O].
      stride: of both axes.
      groups: of channels.
      threads: of XLA.

    Returns:
      float[N, H', W', O]; NotImplemented for groups, and for a dtype or a number of channels without programs.
    """
    if groups != 1 or not executable.supports(x.dtype, kernel.shape[3]):
        return NotImplemented
    return convolve(x, kernel, stride, threads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(x: jax.Array, kernel: jax.Array, stride: int, threads: int) -> jax.Array:
    """Convolve images with a kernel of odd size S, padded by half of it; differentiable.

    Args:
      x: [N, H, W, I] of a dtype that `executable.supports`.
      kernel: [S, S, I, O], O a number of channels that `executable.supports`.
      stride: of both axes.
      threads: of XLA.

    Returns:
      [N, H', W', O].
    """
    pad = kernel.shape[0] // 2
    return forward(x, kernel, stride, (pad, pad), threads)


def _convolve_forward(x, kernel, stride, threads):
    return convolve(x, kernel, stride, threads), (x, kernel)


def _convolve_backward(stride, threads, saved, g):
    x, kernel = saved
    x_gradient = _input_gradient(x, kernel, g, stride, threads)
    return x_gradient, kernel_gradient(x, g, stride, kernel.shape[0], threads)


convolve.defvjp(_convolve_forward, _convolve_backward)


def forward(x: jax.Array, kernel: jax.Array, stride: int, pads: tuple[int, int], threads: int) -> jax.Array:
    """Convolve images with a kernel.

    Args:
      x: [N, H, W, I].
      kernel: [S, S, I, O].
      stride: of both axes.
      pads: zeros before and behind every row and column.
      threads: of XLA.

    Returns:
      [N, H', W', O].

    Raises:
      ValueError: the arrays do not fit together, or no program takes them.
    """
    (n, h, w, inputs), (size, _, _, outputs) = x.shape, kernel.shape
    rows, columns = ((side + sum(pads) - size) // stride + 1 for side in (h, w))
    executable.check(kernel.shape == (size, size, inputs, outputs) and min(rows, columns) > 0, outputs, x, kernel)
    workers = executable.worker_count(n * rows * columns * size * size * inputs * outputs, threads)
    out = [jax.ShapeDtypeStruct((n, rows, columns, outputs), x.dtype)]
    if any(pads):  # room for one image with its borders, for each worker
        out.append(jax.ShapeDtypeStruct((workers, h + sum(pads), w + sum(pads), inputs), x.dtype))
    options = x.shape, out[0].shape, size, stride, pads, workers
    return executable.call(programs.write_conv2d, options, workers, out, x, kernel)[0]


def kernel_gradient(x: jax.Array, g: jax.Array, stride: int, size: int, threads: int) -> jax.Array:
    """Return the gradient of the kernel of a convolution that is padded by half of the kernel's size.

    Args:
      x: input of the convolution, [N, H, W, I].
      g: gradient of its output, [N, H', W', O].
      stride: of both axes.
      size: S, odd.
      threads: of XLA.

    Returns:
      [S, S, I, O].

    Raises:
      ValueError: the arrays do not fit together, or no program takes them.
    """
    shape, n = (size, size, x.shape[3], g.shape[3]), len(x)
    executable.check(len(g) == n and size % 2 == 1, g.shape[3], x, g)
    parts = min(n, _PARTS) if programs.is_small(shape, x.dtype.itemsize) else 1
    workers = executable.worker_count(g.size * math.prod(shape[:3]), threads)
    out = [jax.ShapeDtypeStruct((parts, *shape), x.dtype)]
    options = x.shape, g.shape, stride, size, parts, workers
    gradients = executable.call(programs.write_kernel_gradient, options, workers, out, x, g)[0]
    return gradients.sum(axis=0) if parts > 1 else gradients[0]


def _input_gradient(x, kernel, g, stride: int, threads: int):
    """Return the gradient of a convolution's input: a convolution of the output's gradient, where that is possible."""
    size, pad, inputs = kernel.shape[0], kernel.shape[0] // 2, kernel.shape[2]
    supported, turned = executable.supports(x.dtype, inputs), kernel[::-1, ::-1].swapaxes(2, 3)
    if supported and stride == 1:
        return forward(g, turned, 1, (pad, pad), threads)
    if supported and stride == 2 and size == 1:
        spread = forward(g, turned, 1, (0, 0), threads)
        ends = [(0, side - (2 * count - 1), 1) for side, count in zip(x.shape[1:3], g.shape[1:3], strict=True)]
        return lax.pad(spread, jnp.zeros((), g.dtype), ((0, 0, 0), *ends, (0, 0, 0)))
    if supported and stride == 2 and size == 3 and x.shape[1] % 2 == x.shape[2] % 2 == 0:
        # Even rows of the input meet the middle row of the kernel only, odd rows the first and the last; columns alike.
        # So each of the four kinds of pixel is a convolution by 2 x 2 taps, and one convolution computes them all.
        (n, h, w, outputs), taps = g.shape, _taps_of_phases(_taps_of_phases(kernel, 1), 2)
        taps = taps.transpose(1, 3, 5, 0, 2, 4).reshape(2, 2, outputs, 4 * inputs)
        phases = forward(g, taps, 1, (0, 1), threads).reshape(n, h, w, 2, 2, inputs)
        return phases.transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * h, 2 * w, inputs)

    def convolution(x):
        pads, numbers = ((pad, pad), (pad, pad)), ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=numbers)

    return jax.linear_transpose(convolution, x)(g)[0]  # XLA: for the stem, whose input needs none, and odd sides


def _taps_of_phases(kernel, axis: int):
    """Replace an axis of 3 taps by two axes in front, (phase, tap): (middle, none) and (last, first)."""
    first, middle, last = (lax.index_in_dim(kernel, i, axis, keepdims=False) for i in range(3))
    return jnp.stack([jnp.stack([middle, jnp.zeros_like(middle)]), jnp.stack([last, first])])
