"""Write the body of a program in LLVM's assembly language."""

import contextlib
from collections.abc import Iterator

from unimix_jax.cpu_kernels import processor

Value = str | int  # an integer (i64): the name of a value in the program, or a number that is known now


class Code:
    """The instructions that compute one piece of a program's work.

    They may use the values %in and %out, arrays of XLA's buffers, and the integers %piece and %worker.

    Attributes:
      scalar: LLVM's type of a number.
      bytes: of a number.
      lanes: numbers in a vector.
      vector: LLVM's type of a vector of numbers.
      mask: LLVM's type of a vector of truth values.
      registers: vectors that the processor can keep in registers.
      lines: the instructions.
    """

    def __init__(self, dtype: str) -> None:
        self.scalar = {"float32": "float", "float64": "double"}[dtype]
        self.bytes, self.lanes = processor.BYTES[dtype], processor.lanes(dtype)
        self.vector, self.mask = f"<{self.lanes} x {self.scalar}>", f"<{self.lanes} x i1>"
        self.registers = processor.registers()
        self.lines: list[str] = []
        self._names = 0

    def let(self, instruction: str) -> str:
        """Name the result of an instruction."""
        self._names += 1
        self.lines.append(f"  %v{self._names} = {instruction}")
        return f"%v{self._names}"

    def add(self, *terms: Value) -> Value:
        """Add integers."""
        constant = sum(term for term in terms if isinstance(term, int))
        total, *others = [term for term in terms if not isinstance(term, int)] or [constant]
        for term in others + ([constant] if constant and total is not constant else []):
            total = self.let(f"add nsw i64 {total}, {term}")
        return total

    def times(self, a: Value, b: int) -> Value:
        """Multiply integers."""
        return a * b if isinstance(a, int) else self.let(f"mul nsw i64 {a}, {b}")

    def divide(self, a: Value, b: int) -> str:
        """Divide integers, rounding towards 0."""
        return self.let(f"sdiv i64 {a}, {b}")

    def remainder(self, a: Value, b: int) -> str:
        """Return what remains of a division of integers."""
        return self.let(f"srem i64 {a}, {b}")

    def least(self, a: Value, b: Value) -> str:
        """Return the smaller integer."""
        return self.let(f"call i64 @llvm.smin.i64(i64 {a}, i64 {b})")

    def most(self, a: Value, b: Value) -> str:
        """Return the larger integer."""
        return self.let(f"call i64 @llvm.smax.i64(i64 {a}, i64 {b})")

    def share(self, total: int, pieces: int) -> tuple[str, str]:
        """Return where the share of this piece in `total` begins and ends."""
        begin = self.divide(self.times("%piece", total), pieces)
        return begin, self.divide(self.times(self.add("%piece", 1), total), pieces)

    def index(self, shape: tuple[int, ...], *indices: Value) -> Value:
        """Return the offset of an element in an array of a shape."""
        offset = 0
        for side, i in zip(shape, indices, strict=True):
            offset = self.add(self.times(offset, side), i)
        return offset

    def data(self, buffers: str, index: int) -> str:
        """Return the address of the numbers of an argument or a result (`data` of XLA_FFI_Buffer)."""
        buffer = self.let(f"load ptr, ptr {self.let(f'getelementptr ptr, ptr {buffers}, i64 {index}')}")
        return self.let(f"load ptr, ptr {self.let(f'getelementptr i8, ptr {buffer}, i64 24')}")

    def at(self, base: str, *terms: Value) -> str:
        """Return the address of a number, counted from a base address by the sum of terms."""
        return self.let(f"getelementptr {self.scalar}, ptr {base}, i64 {self.add(*terms)}")

    def load(self, address: str) -> str:
        """Load a vector."""
        return self.let(f"load {self.vector}, ptr {address}, align {self.bytes}")

    def store(self, vector: str, address: str) -> None:
        """Store a vector."""
        self.lines.append(f"  store {self.vector} {vector}, ptr {address}, align {self.bytes}")

    def load_bytes(self, base: str, index: Value) -> str:
        """Load uint8 as a vector of floating-point numbers."""
        address = self.let(f"getelementptr i8, ptr {base}, i64 {index}")
        small = self.let(f"load <{self.lanes} x i8>, ptr {address}, align 1")
        return self.let(f"uitofp <{self.lanes} x i8> {small} to {self.vector}")

    def store_bytes(self, vector: str, base: str, index: Value) -> None:
        """Store a vector of floating-point numbers in 0..255 as uint8."""
        small = self.let(f"fptoui {self.vector} {vector} to <{self.lanes} x i8>")
        address = self.let(f"getelementptr i8, ptr {base}, i64 {index}")
        self.lines.append(f"  store <{self.lanes} x i8> {small}, ptr {address}, align 1")

    def broadcast(self, number: str) -> str:
        """Put one floating-point number into every lane of a vector."""
        v = self.vector
        first = self.let(f"insertelement {v} poison, {self.scalar} {number}, i32 0")
        return self.let(f"shufflevector {v} {first}, {v} poison, <{self.lanes} x i32> zeroinitializer")

    def load_broadcast(self, address: str) -> str:
        """Load one floating-point number into every lane of a vector."""
        return self.broadcast(self.let(f"load {self.scalar}, ptr {address}, align {self.bytes}"))

    def multiply_add(self, a: str, b: str, c: str) -> str:
        """Return a * b + c of vectors, rounded once."""
        v = self.vector
        return self.let(f"call {v} @llvm.fma.v{self.lanes}f{8 * self.bytes}({v} {a}, {v} {b}, {v} {c})")

    def sum(self, a: str, b: str) -> str:
        """Add vectors."""
        return self.let(f"fadd {self.vector} {a}, {b}")

    def select(self, condition: str, a: str, b: str) -> str:
        """Take each lane from one of two vectors."""
        return self.let(f"select {self.mask} {condition}, {self.vector} {a}, {self.vector} {b}")

    def zero(self, address: str, count: int) -> None:
        """Set `count` numbers to 0."""
        self.lines.append(f"  call void @llvm.memset.p0.i64(ptr {address}, i8 0, i64 {count * self.bytes}, i1 0)")

    def copy(self, target: str, source: str, count: int) -> None:
        """Copy `count` numbers."""
        size = count * self.bytes
        self.lines.append(f"  call void @llvm.memcpy.p0.p0.i64(ptr {target}, ptr {source}, i64 {size}, i1 0)")

    @contextlib.contextmanager
    def loop(self, start: Value, stop: Value, step: int = 1, carry: tuple | list = ()) -> Iterator["Loop"]:
        """Repeat the instructions of the `with` block.

        Args:
          start: the first value of the counter.
          stop: the counter stays below it.
          step: added to the counter after each turn.
          carry: vectors that the first turn gets.

        Yields:
          The loop. The block reads `i` and `carry`, and may set `next`; `result` exists after the block.
        """
        self._names += 1
        label, loop = f"l{self._names}", Loop()
        entered = self.let(f"icmp slt i64 {start}, {stop}")
        self.lines += [f"  br label %{label}.from", f"{label}.from:"]
        self.lines += [f"  br i1 {entered}, label %{label}.body, label %{label}.done", f"{label}.body:"]
        loop.i, loop.carry, head = f"%{label}.i", [f"%{label}.c{n}" for n in range(len(carry))], len(self.lines)
        loop.next = loop.carry
        yield loop
        following = self.let(f"add nsw i64 {loop.i}, {step}")
        again = self.let(f"icmp slt i64 {following}, {stop}")
        self.lines += [f"  br label %{label}.end", f"{label}.end:"]
        self.lines += [f"  br i1 {again}, label %{label}.body, label %{label}.done", f"{label}.done:"]
        before, behind = f"%{label}.from", f"%{label}.end"
        phis = [f"  {loop.i} = phi i64 [{start}, {before}], [{following}, {behind}]"]
        loop.result = []
        for name, first, last in zip(loop.carry, carry, loop.next, strict=True):
            phi = f"phi {self.vector} [{first}, {before}], [{last}, {behind}]"
            phis.append(f"  {name} = {phi}")
            loop.result.append(self.let(phi))
        self.lines[head:head] = phis


class Loop:
    """The counter of a loop, and the vectors that it carries from turn to turn.

    Attributes:
      i: the counter.
      carry: the vectors at the begin of a turn.
      next: the vectors that the next turn gets.
      result: the vectors after the last turn.
    """

    i: str
    carry: list[str]
    next: list[str]
    result: list[str]
