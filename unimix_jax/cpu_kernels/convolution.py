"""Convolutions and max-pooling for the CPU at hand, a program for each shape (`assembly`).

A vector holds neighbouring output channels. The inner loops multiply a few vectors with single numbers, one fused
multiply-add for each number that is loaded, and keep their sums in registers. XLA's own convolutions reach .4 to .9 of
such a loop, its gradients of kernels .3 to .8 (benchmarks/README.md). Values do not depend on the number of threads.
"""

import math

import jax
import jax.numpy as jnp

from unimix_jax.cpu_kernels import assembly
from unimix_jax.cpu_kernels.assembly import Code

_SMALL = 2**18  # bytes of a kernel's gradient of which every part of a batch can have its own
_PARTS = 8  # of a batch then, and threads at most; a constant, for the order of a sum is seen in its last bits
_WORTH = 4_000_000  # multiply-adds that take as long as waking a thread


def takes(dtype, outputs: int) -> bool:
    """Return whether there are programs for that type and that many output channels: vectors must be full."""
    return str(dtype) in assembly.BYTES and outputs % assembly.lanes(str(dtype)) == 0


def forward(x, kernel, stride: int, pads: tuple[int, int]):
    """Convolve images [N, H, W, I] with a kernel [S, S, I, O]; [N, H', W', O].

    Args:
      x, kernel: float32 or float64; `takes` their type and O.
      stride: of both axes.
      pads: zeros before and behind every row and column.

    Raises:
      ValueError: arrays that do not fit together, or that no program takes.
    """
    (n, h, w, inputs), (size, _, _, outputs) = x.shape, kernel.shape
    rows, columns = ((side + sum(pads) - size) // stride + 1 for side in (h, w))
    _check(kernel.shape == (size, size, inputs, outputs) and min(rows, columns) > 0, outputs, x, kernel)
    workers = _workers(n * rows * columns * size * size * inputs * outputs)
    out = [jax.ShapeDtypeStruct((n, rows, columns, outputs), x.dtype)]
    if any(pads):  # room for one image with its borders a worker
        out.append(jax.ShapeDtypeStruct((workers, h + sum(pads), w + sum(pads), inputs), x.dtype))
    options = x.shape, out[0].shape, size, stride, pads, workers
    return _call(_write_forward, options, workers, out, x, kernel)[0]


def kernel_gradient(x, g, stride: int, size: int):
    """Return the gradient [S, S, I, O] of the kernel of a convolution padded by half its size.

    Args:
      x: its input [N, H, W, I].
      g: the gradient of its output [N, H', W', O]; `takes` their type and O.
      stride: of both axes.
      size: S, odd.

    Raises:
      ValueError: as `forward`.
    """
    shape, n = (size, size, x.shape[3], g.shape[3]), len(x)
    _check(len(g) == n and size % 2 == 1, g.shape[3], x, g)
    parts = min(n, _PARTS) if math.prod(shape) * x.dtype.itemsize <= _SMALL else 1
    workers = _workers(g.size * math.prod(shape[:3]))
    out = jax.ShapeDtypeStruct((parts, *shape), x.dtype)
    found = _call(_write_kernel_gradient, (x.shape, g.shape, stride, size, parts, workers), workers, (out,), x, g)[0]
    return found.sum(axis=0) if parts > 1 else found[0]


def max_pool(x):
    """Take the largest of each 3 x 3 window at stride 2, borders left out; nan if one is there.

    Args:
      x: [N, H, W, C]; `takes` its type and C.

    Returns:
      [N, ceil(H / 2), ceil(W / 2), C], and uint8 of this shape: where in its window the first largest one is.
    """
    _check(True, x.shape[3], x)
    shape = _pooled(x.shape)
    out = jax.ShapeDtypeStruct(shape, x.dtype), jax.ShapeDtypeStruct(shape, jnp.uint8)
    workers = _workers(9 * math.prod(shape))
    return _call(_write_max_pool, (x.shape, shape, workers), workers, out, x)


def max_pool_gradient(place, g, shape: tuple[int, int, int, int]):
    """Return the gradient of `max_pool`'s input of that shape, from its places and the gradient of its output."""
    _check(g.shape == _pooled(shape) == place.shape and place.dtype == jnp.uint8, g.shape[3], g)
    workers = _workers(9 * g.size)
    out = jax.ShapeDtypeStruct(shape, g.dtype)
    return _call(_write_max_pool_gradient, (shape, g.shape, workers), workers, (out,), place, g)[0]


def _pooled(shape: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    n, h, w, channels = shape
    return n, -(-h // 2), -(-w // 2), channels


def _workers(work: int) -> int:
    return max(1, min(assembly.threads(), work // _WORTH))


def _call(write, options: tuple, workers: int, out, *arguments):
    numbers = "_".join(str(options).translate(str.maketrans("(),", "   ")).split())
    # Such as forward_128_32_32_16_128_32_32_16_3_1_1_1_2.
    name = f"{write.__name__.removeprefix('_write_')}_{numbers}"
    name = assembly.registered(write, options, name, str(arguments[-1].dtype), workers)
    return jax.ffi.ffi_call(name, out, vmap_method="sequential")(*arguments)


def _check(fits: bool, channels: int, *arrays) -> None:
    """Refuse what would make a program read or write outside of its arrays."""
    types = {str(array.dtype) for array in arrays}
    if not fits or len(types) > 1 or not takes(arrays[0].dtype, channels) or not all(array.size for array in arrays):
        raise ValueError(f"no program for {channels} channels of {[f'{a.dtype}{list(a.shape)}' for a in arrays]}")


def _share(code: Code, total: int, pieces: int) -> tuple[str, str]:
    """Return where this piece's share of `total` begins and ends."""
    first = code.divide(code.times("%piece", total), pieces)
    return first, code.divide(code.times(code.add("%piece", 1), total), pieces)


def _divisor(number: int, limit: int) -> int:
    """Return the largest divisor up to a limit."""
    return max(d for d in range(1, limit + 1) if number % d == 0)


def _write_forward(code: Code, x_shape, out_shape, size: int, stride: int, pads, workers: int) -> int:
    """Write `forward`: an image is copied between borders of zeros, then a tile of pixels and channels at a time."""
    (n, h, w, inputs), (_, rows, columns, outputs) = x_shape, out_shape
    tall, wide, lanes = h + sum(pads), w + sum(pads), code.lanes
    vectors = 2 if outputs % (2 * lanes) == 0 else 1
    limit = code.registers // 2 // vectors
    pixels = _divisor(columns, limit)
    pixels = pixels if 2 * pixels >= limit else min(limit, columns)
    x, kernel = code.data("%in", 0), code.data("%in", 1)
    out = code.data("%out", 0)
    pieces = min(n, 4 * workers)
    if any(pads):
        bordered = code.at(code.data("%out", 1), code.index((workers, tall * wide * inputs), "%worker", 0))
        code.zero(bordered, tall * wide * inputs)

    def tile(source, target, row, column, channel, pixels: int):
        corner = code.at(
            source, code.index((tall, wide, inputs), code.times(row, stride), code.times(column, stride), 0)
        )
        zeros = ["zeroinitializer"] * (pixels * vectors)
        with code.loop(0, size, carry=zeros) as above:
            line = code.at(corner, code.times(above.i, wide * inputs))
            weights = code.at(kernel, code.times(above.i, size * inputs * outputs), channel)
            # Neighbouring pixels and their channels lie side by side, in a row of the kernel as in the image.
            with code.loop(0, size * inputs, carry=above.carry) as along:
                here, there = code.at(line, along.i), code.at(weights, code.times(along.i, outputs))
                weight = [code.load(code.at(there, v * lanes)) for v in range(vectors)]
                along.next = []
                for pixel in range(pixels):
                    number = code.spread(code.at(here, pixel * stride * inputs))
                    for v in range(vectors):
                        total = along.carry[pixel * vectors + v]
                        along.next.append(code.multiply_add(number, weight[v], total))
            above.next = along.result
        place = code.at(target, code.index(out_shape[1:], row, column, channel))
        for i, value in enumerate(above.result):
            code.store(value, code.at(place, i // vectors * outputs + i % vectors * lanes))

    with code.loop(*_share(code, n, pieces)) as image:
        source = code.at(x, code.times(image.i, h * w * inputs))
        target = code.at(out, code.times(image.i, rows * columns * outputs))
        if any(pads):
            with code.loop(0, h) as row:
                inside = code.index((tall, wide, inputs), code.add(row.i, pads[0]), pads[0], 0)
                code.copy(code.at(bordered, inside), code.at(source, code.times(row.i, w * inputs)), w * inputs)
            source = bordered
        with code.loop(0, outputs, vectors * lanes) as channel, code.loop(0, rows) as row:
            whole = columns // pixels * pixels
            with code.loop(0, whole, pixels) as column:
                tile(source, target, row.i, column.i, channel.i, pixels)
            if whole < columns:
                tile(source, target, row.i, whole, channel.i, columns - whole)
    return pieces


def _write_kernel_gradient(code: Code, x_shape, g_shape, stride: int, size: int, parts: int, workers: int) -> int:
    """Write `kernel_gradient`: for a block of pixels at a time, one tap of the kernel and a tile of channels."""
    (n, h, w, inputs), (_, rows, columns, outputs) = x_shape, g_shape
    lanes, pad, shape = code.lanes, size // 2, (size, size, inputs, outputs)
    deep = _divisor(inputs, code.registers // 4)
    vectors = _divisor(outputs // lanes, max(1, code.registers // 2 // deep))
    x, g, out = code.data("%in", 0), code.data("%in", 1), code.data("%out", 0)
    tiles = size, size, inputs // deep, outputs // (vectors * lanes)
    tasks = math.prod(tiles)
    if parts > 1:
        pieces = parts
        out = code.at(out, code.times("%piece", math.prod(shape)))
        (first_image, end_image), (first, end) = _share(code, n, pieces), (0, tasks)
    else:
        pieces = min(tasks, 4 * workers)
        (first_image, end_image), (first, end) = (0, n), _share(code, tasks, pieces)
    # Sums of a block stay in registers. A large kernel comes from far away, and is worth a longer block.
    block = 128 if math.prod(shape) * code.bytes <= _SMALL else 512
    some_rows, some_images = min(rows, -(-block // columns)), max(1, block // (rows * columns))

    def tile_of(task):
        """Row and column of a task's tap, first input and output channel, and where its sums are kept."""
        place = []
        for count in reversed(tiles):
            place.insert(0, code.let(f"srem i64 {task}, {count}"))
            task = code.divide(task, count)
        below, right, i, o = *place[:2], code.times(place[2], deep), code.times(place[3], vectors * lanes)
        corner = code.at(out, code.index(shape, below, right, i, o))
        return (
            below,
            right,
            i,
            o,
            [code.at(corner, a * outputs + v * lanes) for a in range(deep) for v in range(vectors)],
        )

    def inside(tap, side: int, count: int):
        """The range of output positions whose input at this tap lies inside of the image."""
        before = code.divide(code.let(f"sub i64 {pad + stride - 1}, {tap}"), stride)
        behind = code.divide(code.let(f"sub i64 {side - 1 + pad + stride}, {tap}"), stride)
        return code.most(before, 0), code.least(behind, count)

    with code.loop(first, end) as task:
        for place in tile_of(task.i)[-1]:
            code.store("zeroinitializer", place)
    with code.loop(first_image, end_image, some_images) as images, code.loop(0, rows, some_rows) as band:
        last_image = code.least(code.add(images.i, some_images), end_image)
        band_end = code.least(code.add(band.i, some_rows), rows)
        with code.loop(first, end) as task:
            below, right, channel_in, channel_out, places = tile_of(task.i)
            top, bottom = inside(below, h, rows)
            top, bottom = code.most(top, band.i), code.least(bottom, band_end)
            left, rim = inside(right, w, columns)
            with code.loop(images.i, last_image, carry=["zeroinitializer"] * len(places)) as image:
                with code.loop(top, bottom, carry=image.carry) as row:
                    above = code.add(code.times(row.i, stride), below, -pad)
                    x_row = code.at(x, code.index(x_shape, image.i, above, code.add(right, -pad), channel_in))
                    g_row = code.at(g, code.index(g_shape, image.i, row.i, 0, channel_out))
                    with code.loop(left, rim, carry=row.carry) as column:
                        here = code.at(x_row, code.times(column.i, stride * inputs))
                        there = code.at(g_row, code.times(column.i, outputs))
                        slopes = [code.load(code.at(there, v * lanes)) for v in range(vectors)]
                        column.next = []
                        for a in range(deep):
                            number = code.spread(code.at(here, a))
                            for v in range(vectors):
                                total = column.carry[a * vectors + v]
                                column.next.append(code.multiply_add(number, slopes[v], total))
                    row.next = column.result
                image.next = row.result
            for place, value in zip(places, image.result, strict=True):
                code.store(code.let(f"fadd {code.vector} {code.load(place)}, {value}"), place)
    return pieces


def _write_max_pool(code: Code, x_shape, out_shape, workers: int) -> int:
    """Write `max_pool`, a vector of channels at a time."""
    (n, h, w, channels), (_, rows, columns, _) = x_shape, out_shape
    x, out, places, v = code.data("%in", 0), code.data("%out", 0), code.data("%out", 1), code.vector
    lowest = f"splat ({code.scalar} 0xFFF0000000000000)"  # minus infinity, spelled as a double for either type
    pieces = min(n, 4 * workers)
    with code.loop(*_share(code, n, pieces)) as image, code.loop(0, rows) as row, code.loop(0, columns) as column:
        down, across = _window(code, row.i, h), _window(code, column.i, w)
        with code.loop(0, channels, code.lanes) as channel:
            with code.loop(*down, carry=[lowest, "zeroinitializer"]) as above:
                with code.loop(*across, carry=above.carry) as right:
                    tap = _tap(code, x_shape, image.i, row.i, column.i, above.i, right.i, channel.i)
                    value, (best, place) = code.load(code.at(x, tap)), right.carry
                    more = code.let(f"fcmp ogt {v} {value}, {best}")
                    more = code.let(f"or {code.mask} {more}, {code.let(f'fcmp uno {v} {value}, {value}')}")
                    number = _number(code, above.i, right.i)
                    right.next = [code.select(more, value, best), code.select(more, number, place)]
                above.next = right.result
            to = code.index(out_shape, image.i, row.i, column.i, channel.i)
            code.store(above.result[0], code.at(out, to))
            code.store_bytes(above.result[1], places, to)
    return pieces


def _write_max_pool_gradient(code: Code, x_shape, g_shape, workers: int) -> int:
    """Write `max_pool_gradient`: each slope goes to where its window had the largest value."""
    (n, h, w, channels), (_, rows, columns, _) = x_shape, g_shape
    places, g, out, v = code.data("%in", 0), code.data("%in", 1), code.data("%out", 0), code.vector
    pieces = min(n, 4 * workers)
    with code.loop(*_share(code, n, pieces)) as image:
        code.zero(code.at(out, code.times(image.i, h * w * channels)), h * w * channels)
        with code.loop(0, rows) as row, code.loop(0, columns) as column:
            down, across = _window(code, row.i, h), _window(code, column.i, w)
            with code.loop(0, channels, code.lanes) as channel:
                here = code.index(g_shape, image.i, row.i, column.i, channel.i)
                slope, place = code.load(code.at(g, here)), code.load_bytes(places, here)
                with code.loop(*down) as above, code.loop(*across) as right:
                    to = code.at(out, _tap(code, x_shape, image.i, row.i, column.i, above.i, right.i, channel.i))
                    hit = code.let(f"fcmp oeq {v} {place}, {_number(code, above.i, right.i)}")
                    mine = code.select(hit, slope, "zeroinitializer")
                    code.store(code.let(f"fadd {v} {code.load(to)}, {mine}"), to)
    return pieces


def _window(code: Code, at: str, side: int) -> tuple[str, str]:
    """Return the range of a window's rows, or columns, that lie inside of the image."""
    first = code.let(f"sub i64 1, {code.times(at, 2)}")
    return code.most(first, 0), code.least(code.add(first, side), 3)


def _tap(code: Code, x_shape, image, row, column, above, right, channel):
    """Return where one number of a window lies in the input."""
    down, across = (code.add(code.times(at, 2), tap, -1) for at, tap in ((row, above), (column, right)))
    return code.index(x_shape, image, down, across, channel)


def _number(code: Code, above, right) -> str:
    """Return the number of a tap of a window, 0..8, in every place of a vector."""
    number = code.add(code.times(above, 3), right)
    return code.everywhere(code.let(f"sitofp i64 {number} to {code.scalar}"))
