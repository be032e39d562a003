"""Max-pooling over 3 x 3 windows at stride 2, padded by 1, and its gradient."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from unimix_jax.cpu_kernels import executable
from unimix_jax.cpu_kernels.assembly import Code, Value


def max_pool(x: jax.Array, *, threads: int) -> Any:
    """Take the largest number of each window, as `models.ops.max_pool` does.

    Args:
      x: float[N, H, W, C].
      threads: of XLA.

    Returns:
      float[N, ceil(H / 2), ceil(W / 2), C]; NotImplemented for a dtype or a number of channels without programs.
    """
    return pool(x, threads) if executable.supports(x.dtype, x.shape[-1]) else NotImplemented


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def pool(x: jax.Array, threads: int) -> jax.Array:
    """Take the largest number of each window; the first of several largest gets the gradient.

    Args:
      x: [N, H, W, C], dtype and C as `executable.supports` them.
      threads: of XLA.

    Returns:
      [N, ceil(H / 2), ceil(W / 2), C].
    """
    return forward(x, threads)[0]


def _pool_forward(x, threads):
    out, taps = forward(x, threads)
    return out, (taps, x)


def _pool_backward(threads, saved, g):
    taps, x = saved  # of x, only the shape is used
    return (gradient(taps, g, x.shape, threads),)


pool.defvjp(_pool_forward, _pool_backward)


def forward(x: jax.Array, threads: int) -> jax.Array:
    """Take the largest number of each window; nan if one is in it.

    Args:
      x: [N, H, W, C].
      threads: of XLA.

    Returns:
      [N, ceil(H / 2), ceil(W / 2), C], and uint8 of this shape: the tap, 0..8, of the first largest number.

    Raises:
      ValueError: no program takes x.
    """
    executable.check(True, x.shape[3], x)
    shape = _pooled(x.shape)
    out = [jax.ShapeDtypeStruct(shape, x.dtype), jax.ShapeDtypeStruct(shape, jnp.uint8)]
    workers = executable.worker_count(9 * math.prod(shape), threads)
    return executable.call(_write_max_pool, (x.shape, shape, workers), workers, out, x)


def gradient(taps: jax.Array, g: jax.Array, shape: tuple[int, int, int, int], threads: int) -> jax.Array:
    """Return the gradient of the input.

    Args:
      taps: uint8[N, H', W', C] of `forward`.
      g: gradient of the output, [N, H', W', C].
      shape: of the input.
      threads: of XLA.

    Returns:
      [N, H, W, C].

    Raises:
      ValueError: the arrays do not fit together, or no program takes them.
    """
    executable.check(g.shape == _pooled(shape) == taps.shape and taps.dtype == jnp.uint8, g.shape[3], g)
    workers = executable.worker_count(9 * g.size, threads)
    out = [jax.ShapeDtypeStruct(shape, g.dtype)]
    return executable.call(_write_max_pool_gradient, (shape, g.shape, workers), workers, out, taps, g)[0]


def _pooled(shape: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    n, h, w, channels = shape
    return n, -(-h // 2), -(-w // 2), channels


def _write_max_pool(code: Code, x_shape, out_shape, workers: int) -> int:
    """Write `forward`, a vector of channels at a time; return the number of pieces."""
    (n, h, w, channels), (_, rows, columns, _) = x_shape, out_shape
    x, out, taps, v = code.data("%in", 0), code.data("%out", 0), code.data("%out", 1), code.vector
    lowest = f"splat ({code.scalar} 0xFFF0000000000000)"  # minus infinity, written as a double for either type
    pieces = min(n, 4 * workers)
    with code.loop(*code.share(n, pieces)) as image, code.loop(0, rows) as row, code.loop(0, columns) as column:
        down, across = _window(code, row.i, h), _window(code, column.i, w)
        with code.loop(0, channels, code.lanes) as channel:
            with code.loop(*down, carry=[lowest, "zeroinitializer"]) as above:
                with code.loop(*across, carry=above.carry) as right:
                    index = _input_index(code, x_shape, image.i, row.i, column.i, above.i, right.i, channel.i)
                    value, (best, best_tap) = code.load(code.at(x, index)), right.carry
                    more = code.let(f"fcmp ogt {v} {value}, {best}")
                    more = code.let(f"or {code.mask} {more}, {code.let(f'fcmp uno {v} {value}, {value}')}")
                    tap = _tap(code, above.i, right.i)
                    right.next = [code.select(more, value, best), code.select(more, tap, best_tap)]
                above.next = right.result
            index = code.index(out_shape, image.i, row.i, column.i, channel.i)
            code.store(above.result[0], code.at(out, index))
            code.store_bytes(above.result[1], taps, index)
    return pieces


def _write_max_pool_gradient(code: Code, x_shape, g_shape, workers: int) -> int:
    """Write `gradient`: each slope goes to where its window had the largest number; return the number of pieces."""
    (n, h, w, channels), (_, rows, columns, _) = x_shape, g_shape
    taps, g, out, v = code.data("%in", 0), code.data("%in", 1), code.data("%out", 0), code.vector
    pieces = min(n, 4 * workers)
    with code.loop(*code.share(n, pieces)) as image:
        code.zero(code.at(out, code.times(image.i, h * w * channels)), h * w * channels)
        with code.loop(0, rows) as row, code.loop(0, columns) as column:
            down, across = _window(code, row.i, h), _window(code, column.i, w)
            with code.loop(0, channels, code.lanes) as channel:
                index = code.index(g_shape, image.i, row.i, column.i, channel.i)
                slope, largest = code.load(code.at(g, index)), code.load_bytes(taps, index)
                with code.loop(*down) as above, code.loop(*across) as right:
                    index = _input_index(code, x_shape, image.i, row.i, column.i, above.i, right.i, channel.i)
                    address = code.at(out, index)
                    hit = code.let(f"fcmp oeq {v} {largest}, {_tap(code, above.i, right.i)}")
                    mine = code.select(hit, slope, "zeroinitializer")
                    code.store(code.sum(code.load(address), mine), address)
    return pieces


def _window(code: Code, position: Value, side: int) -> tuple[str, str]:
    """Return the range of a window's rows, or columns, that lie inside of the image."""
    first = code.let(f"sub i64 1, {code.times(position, 2)}")
    return code.most(first, 0), code.least(code.add(first, side), 3)


def _input_index(code: Code, x_shape, image, row, column, above, right, channel) -> Value:
    """Return where one number of a window lies in the input."""
    y, x = (code.add(code.times(position, 2), tap, -1) for position, tap in ((row, above), (column, right)))
    return code.index(x_shape, image, y, x, channel)


def _tap(code: Code, above: Value, right: Value) -> str:
    """Return the number of a tap, 0..8, in every lane of a vector."""
    number = code.add(code.times(above, 3), right)
    return code.broadcast(code.let(f"sitofp i64 {number} to {code.scalar}"))
