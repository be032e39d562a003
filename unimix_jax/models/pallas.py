"""Normalisation for GPUs by kernels of our own, written in Pallas: seven launches a normalised convolution, not ten.

`models.accelerator` sums in two levels, computes the numbers of each channel, and passes over the activations; XLA
launches each by itself. Here the first level stays with XLA, which joins it with what makes the activations. One kernel
does the rest: each of its programs adds the few partial sums again, computes the numbers of the channels, and passes
over its rows. The first program stores the numbers.

Everything else, and activations that the kernels do not take, is left to `models.accelerator`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from unimix_jax.models import accelerator
from unimix_jax.models.ops import widened

_SUMS = 4096  # of each of the two arrays, that every program adds again, at most
_MOST_PARTS = 128
_ELEMENTS = 4096  # of a block, which a program holds in registers
_PROGRAMS = 512  # a larger array has programs of several blocks


def implementations(interpret: bool = False) -> dict[str, Callable]:
    """Return the backend of `ops`.

    Args:
      interpret: whether to run the kernels without a GPU, slowly.

    Returns:
      A function for each operation.
    """
    return {**accelerator.IMPLEMENTATIONS, "batch_norm": functools.partial(batch_norm, interpret=interpret)}


def batch_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    residual: jax.Array | None,
    relu: bool,
    axis: str | None,
    epsilon: float,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalise as `ops.batch_norm` does, with a gradient of its own; the statistics have none.

    Args:
      x: float[..., C]. The kernels take float32 and fewer bits, a power of two of 8 to 2048 channels, and rows that can
        be divided by 16.
      scale: float[C].
      bias: float[C].
      residual: as x, or None.
      relu: whether ReLU follows.
      axis: mesh axis whose devices share the batch; None for one device. The kernels take one device.
      epsilon: added to the variance.
      interpret: see `implementations`.

    Returns:
      The result, as x; the mean and the biased variance of the batch, float[C] each.
    """
    rows, channels = x.size // x.shape[-1], x.shape[-1]
    one_device = axis is None or jax.lax.axis_size(axis) == 1
    fits = rows % 16 == 0 and 8 <= channels <= 2048 and channels & (channels - 1) == 0
    if not (one_device and fits and widened(x).dtype == jnp.float32):
        return accelerator.batch_norm(x, scale, bias, residual, relu, axis, epsilon)
    return _normalised(x, scale, bias, residual, relu, epsilon, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _normalised(x, scale, bias, residual, relu, epsilon, interpret):
    return _forwards(x, scale, bias, residual, relu, epsilon, interpret)[0]


def _forwards(x, scale, bias, residual, relu, epsilon, interpret):
    wide = widened(x)
    sums = accelerator.partial_sums(wide, wide * wide, _most_parts(x))
    kernel = functools.partial(_forward_kernel, size=x.size // x.shape[-1], relu=relu, epsilon=epsilon)
    rows = (x,) if residual is None else (x, residual)
    out, *numbers = _call(kernel, (*sums, scale, bias), rows, ("rows", *["channels"] * 4), interpret)
    read = out if relu and residual is not None else None  # without a residual, x says where ReLU is 0
    return (out, *numbers[:2]), (x, read, numbers, residual is not None)


def _forward_kernel(in_blocks, sums, squares, scale, bias, x, *rest, size, relu, epsilon):
    """Normalise the rows of a program; `rest` is the residual, if there is one, the result, and four numbers."""
    *residual, out, _, _, _, _ = rest
    mean = sums[...].sum(axis=0) / size
    variance = jnp.maximum(squares[...].sum(axis=0) / size - mean * mean, 0)
    factor = scale[...] * jax.lax.rsqrt(variance + epsilon)
    offset = bias[...] - mean * factor
    _store(rest[-4:], (mean, variance, factor, offset))

    def normalise(rows, _):
        y = widened(x[rows, :]) * factor[None] + offset[None]
        for other in residual:
            y = y + widened(other[rows, :])
        out[rows, :] = (_masked(y, y) if relu else y).astype(out.dtype)

    in_blocks(normalise)


def _backwards(relu, epsilon, interpret, residuals, cotangents):
    x, out, (mean, variance, factor, offset), has_residual = residuals
    cotangent, size, masks = cotangents[0], x.size // x.shape[-1], relu and not has_residual
    if masks:  # XLA would make the mask, or mask the cotangent, by a launch of its own
        parts = accelerator.parts_of(size, _most_parts(x))
        sums = _call(_sums_kernel, (factor, offset), (x, cotangent), ("parts", "parts"), interpret, parts)
    else:
        cotangent = _masked(out, cotangent) if relu else cotangent
        wide = widened(cotangent)
        sums = accelerator.partial_sums(wide, wide * widened(x), _most_parts(x))
        cotangent = jax.lax.optimization_barrier(cotangent)  # the pass that sums stores it, for the residual, too
    kernel = functools.partial(_backward_kernel, size=size, relu=masks, epsilon=epsilon)
    of_channels = *sums, mean, variance, factor, offset
    gradients = _call(kernel, of_channels, (x, cotangent), ("rows", "channels", "channels"), interpret)
    return *gradients, cotangent if has_residual else None


def _sums_kernel(in_blocks, factor, offset, x, cotangent, sums, products):
    """Sum a part's cotangents, masked by ReLU, and their products with x."""

    def add(rows, partial):
        wide, g = widened(x[rows, :]), widened(cotangent[rows, :])
        g = _masked(wide * factor[...][None] + offset[...][None], g)
        return partial[0] + g, partial[1] + g * wide

    zeros = jnp.zeros((in_blocks.rows, x.shape[-1]), jnp.float32)
    for result, partial in zip((sums, products), in_blocks(add, (zeros, zeros)), strict=True):
        result[0, :] = partial.sum(axis=0)


def _backward_kernel(in_blocks, sums, products, *references, size, relu, epsilon):
    """Give the rows of a program their cotangents; mask those that come, if ReLU follows."""
    mean, variance, factor, offset = (reference[...] for reference in references[:4])
    x, cotangent, out, *gradients = references[4:]
    inverse = jax.lax.rsqrt(variance + epsilon)
    bias_gradient = sums[...].sum(axis=0)
    scale_gradient = (products[...].sum(axis=0) - mean * bias_gradient) * inverse
    slope = -factor * inverse * scale_gradient / size
    intercept = -factor * bias_gradient / size - slope * mean
    _store(gradients, (scale_gradient, bias_gradient))

    def differentiate(rows, _):
        wide, g = widened(x[rows, :]), widened(cotangent[rows, :])
        g = _masked(wide * factor[None] + offset[None], g) if relu else g
        out[rows, :] = (factor[None] * g + (slope[None] * wide + intercept[None])).astype(out.dtype)

    in_blocks(differentiate)


_normalised.defvjp(_forwards, _backwards)


def _store(references, arrays):
    """Store numbers of the channels, in one of the programs."""

    @pl.when(pl.program_id(1) == 0)  # the first of a replicate
    def _():
        for reference, array in zip(references, arrays, strict=True):
            reference[...] = array


def _masked(sign: jax.Array, x: jax.Array) -> jax.Array:
    """Return x where an array is positive, or nan, and 0 elsewhere."""
    return jnp.where(sign <= 0, jnp.zeros((), x.dtype), x)


class _Blocks(NamedTuple):
    """The blocks of rows that a program passes over: one after the other, for registers hold no more than a block."""

    rows: int  # of a block
    count: int

    def __call__(self, body: Callable, carry: Any = None) -> Any:
        """Call body(rows, carry) for each block; it returns the next carry."""
        if self.count == 1:
            return body(pl.ds(0, self.rows), carry)
        return jax.lax.fori_loop(0, self.count, lambda i, carry: body(pl.ds(i * self.rows, self.rows), carry), carry)


def _call(
    kernel: Callable, of_channels: tuple, of_rows: tuple, results: tuple[str, ...], interpret: bool, programs: int = 0
) -> list:
    """Run a kernel over the rows of arrays, all their axes but the last.

    Args:
      kernel: gets the program's `_Blocks`, then references to all arrays and to the results.
      of_channels: arrays that each program sees as a whole.
      of_rows: arrays [..., C], of which each program sees its rows.
      results: of each "rows", like the first array of rows; "channels", float32[C]; or "parts", float32[programs, C],
        of which each program sees its row.
      interpret: see `implementations`.
      programs: a divisor of the rows; 0 for as many as serve.

    Returns:
      The results.
    """
    shape, dtype = of_rows[0].shape, of_rows[0].dtype
    rows, channels = math.prod(shape[:-1]), shape[-1]
    most = max(_ELEMENTS // channels, 1)
    if not programs:
        block = _largest_part(rows, most)
        programs = rows // block // _largest_part(rows // block, max(rows // block // _PROGRAMS, 1))
    of_program = rows // programs
    blocks = _Blocks(block := _largest_part(of_program, most), of_program // block)
    count = len(of_channels)

    def run(replicates, arrays):
        """Run the kernel on arrays whose last axis has the channels of all replicates, one replicate after another."""
        whole = [
            pl.BlockSpec((*array.shape[:-1], channels), functools.partial(_of_replicate, array.ndim))
            for array in arrays[:count]
        ]
        specs = {
            "rows": (pl.BlockSpec((of_program, channels), lambda r, i: (i, r)), (rows,), dtype),
            "channels": (pl.BlockSpec((channels,), lambda r, _: (r,)), (), jnp.float32),
            "parts": (pl.BlockSpec((1, channels), lambda r, i: (i, r)), (programs,), jnp.float32),
        }
        out = pl.pallas_call(
            functools.partial(kernel, blocks),
            grid=(replicates, programs),
            in_specs=[*whole, *[specs["rows"][0]] * len(of_rows)],
            out_specs=[specs[result][0] for result in results],
            out_shape=[
                jax.ShapeDtypeStruct((*specs[result][1], replicates * channels), specs[result][2]) for result in results
            ],
            compiler_params=triton.CompilerParams(num_warps=4),
            interpret=interpret,
        )(*arrays)
        return list(out)

    @jax.custom_batching.custom_vmap
    def of_one(*arrays):
        return run(1, arrays)

    @of_one.def_vmap
    def rule(replicates, batched, *arrays):
        # The gradient of a kernel takes replicates as channels, see `accelerator`; so nothing is transposed.
        merged = [
            jnp.moveaxis(array if is_batched else jnp.broadcast_to(array, (replicates, *array.shape)), 0, -2)
            for array, is_batched in zip(arrays, batched, strict=True)
        ]
        out = run(replicates, [array.reshape(*array.shape[:-2], -1) for array in merged])
        out = [jnp.moveaxis(array.reshape(*array.shape[:-1], replicates, channels), -2, 0) for array in out]
        return out, [True] * len(out)

    arrays = of_one(*of_channels, *(array.reshape(rows, channels) for array in of_rows))
    return [array.reshape(shape) if result == "rows" else array for result, array in zip(results, arrays, strict=True)]


def _of_replicate(axes: int, replicate: jax.Array, _: jax.Array) -> tuple:
    """Return the position of a replicate's channels, the only block of all other axes."""
    return *(0,) * (axes - 1), replicate


def _largest_part(rows: int, most: int) -> int:
    """Return the largest power of two that divides a number of rows, up to a bound."""
    return min(rows & -rows, 2 ** (most.bit_length() - 1))


def _most_parts(x: jax.Array) -> int:
    """Return the most partial sums of rows [rows, C]: each program adds them again, which must cost little."""
    return max(1, min(_MOST_PARTS, _SUMS // x.shape[-1]))
