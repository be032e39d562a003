"""The programs of `convolution`: how the loops of a convolution and of its kernel's gradient are written."""

import math
from typing import Any, NamedTuple

from unimix_jax.cpu_kernels.assembly import Code, Value

_SMALL = 2**18  # bytes of a kernel's gradient up to which every part of a batch has its own


def is_small(shape: tuple[int, int, int, int], bytes_per_number: int) -> bool:
    """Return whether each part of a batch can have its own sums for the gradient of a kernel.

    Args:
      shape: of the kernel, [S, S, I, O].
      bytes_per_number: 4 or 8.
    """
    return math.prod(shape) * bytes_per_number <= _SMALL


def write_conv2d(
    code: Code,
    x_shape: tuple[int, ...],
    out_shape: tuple[int, ...],
    size: int,
    stride: int,
    pads: tuple[int, int],
    workers: int,
) -> int:
    """Write a convolution: it copies an image between borders of zeros, then computes tiles of pixels and channels.

    Args:
      code: where to write.
      x_shape: (N, H, W, I).
      out_shape: (N, H', W', O).
      size: of the kernel.
      stride: of both axes.
      pads: zeros before and behind every row and column.
      workers: threads that take pieces.

    Returns:
      The number of pieces.
    """
    (n, h, w, inputs), (_, rows, columns, outputs) = x_shape, out_shape
    bordered_shape = h + sum(pads), w + sum(pads), inputs
    vectors = 2 if outputs % (2 * code.lanes) == 0 else 1
    limit = code.registers // 2 // vectors
    pixels = _divisor(columns, limit)
    pixels = pixels if 2 * pixels >= limit else min(limit, columns)
    x, kernel = code.data("%in", 0), code.data("%in", 1)
    out = code.data("%out", 0)
    pieces = min(n, 4 * workers)
    if any(pads):
        bordered = code.at(code.data("%out", 1), code.index((workers, math.prod(bordered_shape)), "%worker", 0))
        code.zero(bordered, math.prod(bordered_shape))
    tiles = _Tiles(code, kernel, bordered_shape, out_shape[1:], size, stride, vectors)
    with code.loop(*code.share(n, pieces)) as image:
        source = code.at(x, code.times(image.i, h * w * inputs))
        target = code.at(out, code.times(image.i, rows * columns * outputs))
        if any(pads):
            with code.loop(0, h) as row:
                inside = code.index(bordered_shape, code.add(row.i, pads[0]), pads[0], 0)
                code.copy(code.at(bordered, inside), code.at(source, code.times(row.i, w * inputs)), w * inputs)
            source = bordered
        with code.loop(0, outputs, vectors * code.lanes) as channel, code.loop(0, rows) as row:
            whole = columns // pixels * pixels
            with code.loop(0, whole, pixels) as column:
                tiles.write(source, target, row.i, column.i, channel.i, pixels)
            if whole < columns:
                tiles.write(source, target, row.i, whole, channel.i, columns - whole)
    return pieces


class _Tiles(NamedTuple):
    """Tiles of the output of a convolution, whose sums stay in registers."""

    code: Code
    kernel: str
    image_shape: tuple[int, int, int]  # with borders
    out_shape: tuple[int, int, int]
    size: int
    stride: int
    vectors: int

    def write(self, source: str, target: str, row: Value, column: Value, channel: Value, pixels: int) -> None:
        """Compute some neighbouring pixels of a row, and `vectors` vectors of channels of each."""
        code, lanes, (_, wide, inputs), outputs = self.code, self.code.lanes, self.image_shape, self.out_shape[2]
        corner = code.at(
            source, code.index(self.image_shape, code.times(row, self.stride), code.times(column, self.stride), 0)
        )
        zeros = ["zeroinitializer"] * (pixels * self.vectors)
        with code.loop(0, self.size, carry=zeros) as above:
            line = code.at(corner, code.times(above.i, wide * inputs))
            weights = code.at(self.kernel, code.times(above.i, self.size * inputs * outputs), channel)
            # Neighbouring pixels and their channels lie side by side, in a row of the kernel as in the image.
            with code.loop(0, self.size * inputs, carry=above.carry) as along:
                number, some = code.at(line, along.i), code.at(weights, code.times(along.i, outputs))
                weight = [code.load(code.at(some, v * lanes)) for v in range(self.vectors)]
                along.next = []
                for pixel in range(pixels):
                    value = code.load_broadcast(code.at(number, pixel * self.stride * inputs))
                    for v in range(self.vectors):
                        total = along.carry[pixel * self.vectors + v]
                        along.next.append(code.multiply_add(value, weight[v], total))
            above.next = along.result
        first = code.at(target, code.index(self.out_shape, row, column, channel))
        for i, vector in enumerate(above.result):
            code.store(vector, code.at(first, i // self.vectors * outputs + i % self.vectors * lanes))


def write_kernel_gradient(
    code: Code, x_shape: tuple[int, ...], g_shape: tuple[int, ...], stride: int, size: int, parts: int, workers: int
) -> int:
    """Write the gradient of a kernel. For each block of pixels, it computes one tap and one tile of channels at a time.

    The sums of a block stay in registers.

    Args:
      code: where to write.
      x_shape: (N, H, W, I).
      g_shape: (N, H', W', O).
      stride: of both axes.
      size: of the kernel.
      parts: of the batch, each with its own sums; 1 to divide the work by taps and channels instead.
      workers: threads that take pieces.

    Returns:
      The number of pieces.
    """
    (n, _, _, inputs), (_, rows, columns, outputs) = x_shape, g_shape
    shape = size, size, inputs, outputs
    deep = _divisor(inputs, code.registers // 4)
    vectors = _divisor(outputs // code.lanes, max(1, code.registers // 2 // deep))
    x, g, out = code.data("%in", 0), code.data("%in", 1), code.data("%out", 0)
    counts = size, size, inputs // deep, outputs // (vectors * code.lanes)
    tasks = math.prod(counts)
    if parts > 1:
        pieces = parts
        out = code.at(out, code.times("%piece", math.prod(shape)))
        (first_image, end_image), (first, end) = code.share(n, pieces), (0, tasks)
    else:
        pieces = min(tasks, 4 * workers)
        (first_image, end_image), (first, end) = (0, n), code.share(tasks, pieces)
    # A large kernel comes from far away in memory, and is worth a longer block.
    block = 128 if is_small(shape, code.bytes) else 512
    some_rows, some_images = min(rows, -(-block // columns)), max(1, block // (rows * columns))
    taps = _Taps(code, x, g, out, x_shape, g_shape, shape, stride, deep, vectors)
    with code.loop(first, end) as task:
        for address in taps.task(task.i, counts)[-1]:
            code.store("zeroinitializer", address)
    with code.loop(first_image, end_image, some_images) as images, code.loop(0, rows, some_rows) as band:
        last_image = code.least(code.add(images.i, some_images), end_image)
        band_end = code.least(code.add(band.i, some_rows), rows)
        with code.loop(first, end) as task:
            taps.write(taps.task(task.i, counts), (images.i, last_image), (band.i, band_end))
    return pieces


class _Taps(NamedTuple):
    """Sums of the gradient of a kernel: those of one tap and one tile of channels make a task."""

    code: Code
    x: str
    g: str
    out: str
    x_shape: tuple[int, int, int, int]
    g_shape: tuple[int, int, int, int]
    shape: tuple[int, int, int, int]
    stride: int
    deep: int  # input channels of a tile
    vectors: int  # of output channels of a tile

    def task(self, number: Value, counts: tuple[int, int, int, int]) -> Any:
        """Return row and column of a task's tap, its first input and output channel, and the addresses of its sums."""
        code, indices = self.code, []
        for count in reversed(counts):
            indices.insert(0, code.remainder(number, count))
            number = code.divide(number, count)
        below, right = indices[:2]
        i, o = code.times(indices[2], self.deep), code.times(indices[3], self.vectors * code.lanes)
        corner = code.at(self.out, code.index(self.shape, below, right, i, o))
        offsets = [a * self.shape[3] + v * code.lanes for a in range(self.deep) for v in range(self.vectors)]
        return below, right, i, o, [code.at(corner, offset) for offset in offsets]

    def write(self, task: Any, images: tuple[Value, Value], band: tuple[Value, Value]) -> None:
        """Add the products of some images and a band of their rows to the sums of a task."""
        code, (below, right, channel_in, channel_out, addresses) = self.code, task
        (_, h, w, inputs), (_, rows, columns, outputs) = self.x_shape, self.g_shape
        pad = self.shape[0] // 2
        top, bottom = self._inside(below, h, rows)
        top, bottom = code.most(top, band[0]), code.least(bottom, band[1])
        left, rim = self._inside(right, w, columns)
        with code.loop(*images, carry=["zeroinitializer"] * len(addresses)) as image:
            with code.loop(top, bottom, carry=image.carry) as row:
                above = code.add(code.times(row.i, self.stride), below, -pad)
                x_row = code.at(self.x, code.index(self.x_shape, image.i, above, code.add(right, -pad), channel_in))
                g_row = code.at(self.g, code.index(self.g_shape, image.i, row.i, 0, channel_out))
                with code.loop(left, rim, carry=row.carry) as column:
                    number = code.at(x_row, code.times(column.i, self.stride * inputs))
                    vector = code.at(g_row, code.times(column.i, outputs))
                    slopes = [code.load(code.at(vector, v * code.lanes)) for v in range(self.vectors)]
                    column.next = []
                    for a in range(self.deep):
                        value = code.load_broadcast(code.at(number, a))
                        for v in range(self.vectors):
                            total = column.carry[a * self.vectors + v]
                            column.next.append(code.multiply_add(value, slopes[v], total))
                row.next = column.result
            image.next = row.result
        for address, total in zip(addresses, image.result, strict=True):
            code.store(code.sum(code.load(address), total), address)

    def _inside(self, tap: Value, side: int, count: int) -> tuple[str, str]:
        """Return the range of output positions whose input at a tap lies inside of the image."""
        code, pad = self.code, self.shape[0] // 2
        before = code.divide(code.let(f"sub i64 {pad + self.stride - 1}, {tap}"), self.stride)
        behind = code.divide(code.let(f"sub i64 {side - 1 + pad + self.stride}, {tap}"), self.stride)
        return code.most(before, 0), code.least(behind, count)


def _divisor(number: int, limit: int) -> int:
    """Return the largest divisor of a number up to a limit."""
    return max(d for d in range(1, limit + 1) if number % d == 0)
