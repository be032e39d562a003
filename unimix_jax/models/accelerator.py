"""Operations for GPUs with gradients of their own: fewer and better kernels than by differentiating XLA's.

On an accelerator a small network is bound by the number of kernels that are launched. Two operations are changed:

- Normalisation sums two arrays in one reduction, forwards and backwards. XLA reduces each array by itself, in two
  levels, and the second level is one launch for some numbers.
- The gradient of a kernel has a rule for `jax.vmap` over replicates: one convolution in groups. XLA's rule makes a
  convolution with a window as large as the image, for which libraries have no fast program (jax-ml/jax #13800).

`IMPLEMENTATIONS` is a backend of `ops`. It works on CPUs too, where the tests compare it with XLA's.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from unimix_jax.models.ops import widened, xla_conv2d

_LEAST_ROWS = 64  # of a partial sum
_MOST_PARTS = 256


def conv2d(x: jax.Array, kernel: jax.Array, stride: int, groups: int) -> jax.Array:
    """Convolve as `ops.conv2d` does; the gradient of the kernel has a rule for replicates.

    Args:
      x: float[N, H, W, I].
      kernel: float[S, S, I, O] of the same dtype; S is odd.
      stride: of both axes.
      groups: 1; others are left to XLA.

    Returns:
      float[N, ceil(H / stride), ceil(W / stride), O]; NotImplemented for several groups.
    """
    return NotImplemented if groups > 1 else _convolved(x, kernel, stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolved(x, kernel, stride):
    return xla_conv2d(x, kernel, stride, 1)


def _convolved_forwards(x, kernel, stride):
    return xla_conv2d(x, kernel, stride, 1), (x, kernel)


def _convolved_backwards(stride, residuals, cotangent):
    x, kernel = residuals
    (x_cotangent,) = jax.linear_transpose(lambda x: xla_conv2d(x, kernel, stride, 1), x)(cotangent)
    return x_cotangent, _kernel_gradient(stride, kernel.shape[0])(x, cotangent)


_convolved.defvjp(_convolved_forwards, _convolved_backwards)


@functools.cache
def _kernel_gradient(stride: int, size: int) -> Callable:
    """Return the gradient of a kernel as a function of (x, cotangent), with a rule for `jax.vmap`."""

    def of_groups(x, cotangent, groups):
        kernel = jax.ShapeDtypeStruct((size, size, x.shape[-1] // groups, cotangent.shape[-1]), x.dtype)
        return jax.linear_transpose(lambda k: xla_conv2d(x, k, stride, groups), kernel)(cotangent)[0]

    @jax.custom_batching.custom_vmap
    def gradient(x, cotangent):
        return of_groups(x, cotangent, 1)

    @gradient.def_vmap
    def rule(count, batched, x, cotangent):
        x, cotangent = (
            array if is_batched else jnp.broadcast_to(array, (count, *array.shape))
            for array, is_batched in zip((x, cotangent), batched, strict=True)
        )

        def as_channels(array):  # [R, N, H, W, C] -> [N, H, W, R * C]
            return jnp.moveaxis(array, 0, -2).reshape(*array.shape[1:-1], -1)

        kernels = of_groups(as_channels(x), as_channels(cotangent), count)
        return jnp.moveaxis(kernels.reshape(*kernels.shape[:-1], count, -1), -2, 0), True

    return gradient


def batch_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    residual: jax.Array | None,
    relu: bool,
    axis: str | None,
    epsilon: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalise as `ops.batch_norm` does, with a gradient of its own; the statistics have none.

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
    return _normalised(x, scale, bias, residual, relu, axis, epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _normalised(x, scale, bias, residual, relu, axis, epsilon):
    return _normalised_forwards(x, scale, bias, residual, relu, axis, epsilon)[0]


def _normalised_forwards(x, scale, bias, residual, relu, axis, epsilon):
    wide = widened(x)
    sums, size = _summed_over_devices(_sums_of_channels(wide, wide * wide), x, axis)
    mean = sums[0] / size
    variance = jnp.maximum(sums[1] / size - mean * mean, 0)
    inverse = jax.lax.rsqrt(variance + epsilon)
    factor = scale * inverse
    # XLA would compute a channel's root and products again in the backward pass, in launches of their own. Behind a
    # barrier it keeps them, and there is so little left that it becomes a part of the pass over the activations.
    of_channels = mean, inverse, factor, bias - mean * factor, -factor / size, -factor * inverse * inverse / size
    of_channels = jax.lax.optimization_barrier(of_channels)
    out = wide * of_channels[2] + of_channels[3]
    out = out if residual is None else out + widened(residual)
    out = jnp.where(out <= 0, jnp.zeros((), out.dtype), out) if relu else out  # nan stays nan
    # Without the barrier XLA hands a residual on in float32, beside the result in bfloat16, or computes it again.
    out = jax.lax.optimization_barrier(out.astype(x.dtype))
    # Without a residual, x says where ReLU is 0: the backward pass need not read the result.
    read = out if relu and residual is not None else None
    return (out, mean, variance), (x, read, of_channels, residual is not None)


def _normalised_backwards(relu, axis, epsilon, residuals, cotangents):
    x, out, (mean, inverse, factor, offset, of_sum, of_product), has_residual = residuals
    cotangent, wide = cotangents[0], widened(x)
    if relu:
        out = wide * factor + offset if out is None else out
        cotangent = jnp.where(out <= 0, jnp.zeros((), cotangent.dtype), cotangent)
    # Gradients of scale and bias are of this device's share; the step adds them over the devices.
    bias_gradient, products = local = _sums_of_channels(widened(cotangent), widened(cotangent) * wide)
    if has_residual:  # the pass that sums stores it for the residual, and so the next one need not mask it again
        cotangent = jax.lax.optimization_barrier(cotangent)
    scale_gradient = (products - mean * bias_gradient) * inverse
    sums, _ = _summed_over_devices(local, x, axis)
    slope = of_product * (sums[1] - mean * sums[0])
    x_cotangent = factor * widened(cotangent) + (slope * wide + (of_sum * sums[0] - slope * mean))
    return x_cotangent.astype(x.dtype), scale_gradient, bias_gradient, cotangent if has_residual else None


_normalised.defvjp(_normalised_forwards, _normalised_backwards)


def _sums_of_channels(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the sums of two arrays over all axes but the last, [2, C]: partial sums first, then both in one array."""
    return jnp.stack(partial_sums(a, b, _MOST_PARTS)).sum(1)


def partial_sums(a: jax.Array, b: jax.Array, most: int) -> list[jax.Array]:
    """Return the sums of equal parts of the rows of two arrays.

    Args:
      a: float[..., C].
      b: as a.
      most: parts, a power of two. There are fewer where a part would have less than 64 rows, or not as many as another.

    Returns:
      Two float[parts, C]; the number of parts is a power of two.
    """
    rows, channels = a.size // a.shape[-1], a.shape[-1]
    parts = parts_of(rows, most)
    return [array.reshape(parts, rows // parts, channels).sum(1) for array in (a, b)]


def parts_of(rows: int, most: int) -> int:
    """Return into how many equal parts `partial_sums` cuts rows.

    Args:
      rows: of both arrays.
      most: as there.
    """
    return next(
        parts
        for parts in (2**i for i in range(most.bit_length() - 1, -1, -1))
        if parts == 1 or (rows % parts == 0 and rows // parts >= _LEAST_ROWS)
    )


def _summed_over_devices(sums: jax.Array, x: jax.Array, axis: str | None) -> tuple[jax.Array, int]:
    """Return sums over all devices of an axis, and how many rows they are of."""
    size = x.size // x.shape[-1]
    return (sums, size) if axis is None else (jax.lax.psum(sums, axis), size * jax.lax.axis_size(axis))


IMPLEMENTATIONS = {"conv2d": conv2d, "batch_norm": batch_norm}
