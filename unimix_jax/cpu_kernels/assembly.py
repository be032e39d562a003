"""Small programs for this CPU: written in LLVM's assembly, compiled by llvmlite, called by XLA through its FFI.

What a program computes is in `native`; here is how one is written, and how it comes to run on XLA's own threads. The
layout of XLA's structures is that of its C interface (xla/ffi/api/c_api.h), which jaxlib carries as a header.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator

import jax

from unimix_jax import workdir

BYTES = {"float32": 4, "float64": 8}


def missing() -> str:
    """Return why this machine cannot have such programs; "" if it can."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return "they are made for x86-64 Linux only"
    try:
        import llvmlite.binding as llvm

        features = llvm.get_host_cpu_features()
        _machine()
    except ImportError:
        return "llvmlite is not installed (pip install llvmlite, or the extra `fast`)"
    except (AttributeError, OSError, RuntimeError) as error:
        return f"llvmlite does not work here ({error})"
    return "" if features.get("avx2") and features.get("fma") else "this processor has no AVX2 and FMA"


def threads() -> int:
    """Return how many threads XLA's pool has: what its variables say, or one for each core of this process."""
    for name in ("PJRT_NPROC", "NPROC"):
        if os.environ.get(name, "").isdecimal():
            return max(1, int(os.environ[name]))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _machine():
    """Return LLVM's picture of this CPU, and a text that tells CPUs and versions apart."""
    import llvmlite
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    cpu, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features()
    target = llvm.Target.from_default_triple()
    machine = target.create_target_machine(cpu, features.flatten(), opt=3, jit=True)
    return machine, bool(features.get("avx512f")), f"{cpu} {features.flatten()} {llvmlite.__version__}"


def lanes(dtype: str) -> int:
    """Return how many numbers a vector of this CPU holds."""
    return (64 if _machine()[1] else 32) // BYTES[dtype]


def digest(*texts: str) -> str:
    """Return a name for texts, this kind of CPU and this version of LLVM."""
    return hashlib.sha256("\n".join([_machine()[2], *texts]).encode()).hexdigest()[:32]


class Code:
    """What a program does for one piece of its work; a value is its name or a Python int (i64).

    The names %in and %out (arrays of buffers), %piece and %worker (i64) are given.
    """

    def __init__(self, dtype: str):
        self.scalar = {"float32": "float", "float64": "double"}[dtype]
        self.bytes, self.lanes = BYTES[dtype], lanes(dtype)
        self.vector, self.mask = f"<{self.lanes} x {self.scalar}>", f"<{self.lanes} x i1>"
        self.registers = 32 if _machine()[1] else 16
        self.lines: list[str] = []
        self._names = 0

    def let(self, what: str) -> str:
        """Give a name to what an instruction returns."""
        self._names += 1
        self.lines.append(f"  %v{self._names} = {what}")
        return f"%v{self._names}"

    def add(self, *terms) -> str | int:
        known = sum(term for term in terms if isinstance(term, int))
        total, *others = [term for term in terms if not isinstance(term, int)] or [known]
        for term in others + ([known] if known and total is not known else []):
            total = self.let(f"add nsw i64 {total}, {term}")
        return total

    def times(self, a, b: int) -> str | int:
        return a * b if isinstance(a, int) else self.let(f"mul nsw i64 {a}, {b}")

    def divide(self, a, b: int) -> str:
        """Divide, rounding towards 0."""
        return self.let(f"sdiv i64 {a}, {b}")

    def least(self, a, b) -> str:
        return self.let(f"call i64 @llvm.smin.i64(i64 {a}, i64 {b})")

    def most(self, a, b) -> str:
        return self.let(f"call i64 @llvm.smax.i64(i64 {a}, i64 {b})")

    def index(self, shape: tuple[int, ...], *place) -> str | int:
        """Return the offset of a place in an array of that shape."""
        offset = 0
        for side, i in zip(shape, place, strict=True):
            offset = self.add(self.times(offset, side), i)
        return offset

    def data(self, buffers: str, index: int) -> str:
        """Return where the numbers of an argument or a result lie (XLA_FFI_Buffer's `data`)."""
        buffer = self.let(f"load ptr, ptr {self.let(f'getelementptr ptr, ptr {buffers}, i64 {index}')}")
        return self.let(f"load ptr, ptr {self.let(f'getelementptr i8, ptr {buffer}, i64 24')}")

    def at(self, base: str, *terms) -> str:
        return self.let(f"getelementptr {self.scalar}, ptr {base}, i64 {self.add(*terms)}")

    def load(self, place: str) -> str:
        return self.let(f"load {self.vector}, ptr {place}, align {self.bytes}")

    def store(self, value: str, place: str) -> None:
        self.lines.append(f"  store {self.vector} {value}, ptr {place}, align {self.bytes}")

    def load_bytes(self, base: str, index) -> str:
        """Load uint8 as floating-point numbers."""
        place = self.let(f"getelementptr i8, ptr {base}, i64 {index}")
        small = self.let(f"load <{self.lanes} x i8>, ptr {place}, align 1")
        return self.let(f"uitofp <{self.lanes} x i8> {small} to {self.vector}")

    def store_bytes(self, value: str, base: str, index) -> None:
        """Store floating-point numbers in 0..255 as uint8."""
        small = self.let(f"fptoui {self.vector} {value} to <{self.lanes} x i8>")
        place = self.let(f"getelementptr i8, ptr {base}, i64 {index}")
        self.lines.append(f"  store <{self.lanes} x i8> {small}, ptr {place}, align 1")

    def everywhere(self, number: str) -> str:
        """Put one number into every place of a vector."""
        v = self.vector
        first = self.let(f"insertelement {v} poison, {self.scalar} {number}, i32 0")
        return self.let(f"shufflevector {v} {first}, {v} poison, <{self.lanes} x i32> zeroinitializer")

    def spread(self, place: str) -> str:
        """Load one number into every place of a vector."""
        return self.everywhere(self.let(f"load {self.scalar}, ptr {place}, align {self.bytes}"))

    def multiply_add(self, a: str, b: str, c: str) -> str:
        v = self.vector
        return self.let(f"call {v} @llvm.fma.v{self.lanes}f{8 * self.bytes}({v} {a}, {v} {b}, {v} {c})")

    def select(self, condition: str, a: str, b: str) -> str:
        return self.let(f"select {self.mask} {condition}, {self.vector} {a}, {self.vector} {b}")

    def zero(self, place: str, count: int) -> None:
        """Set `count` numbers to 0."""
        self.lines.append(f"  call void @llvm.memset.p0.i64(ptr {place}, i8 0, i64 {count * self.bytes}, i1 0)")

    def copy(self, target: str, source: str, count: int) -> None:
        """Copy `count` numbers."""
        size = count * self.bytes
        self.lines.append(f"  call void @llvm.memcpy.p0.p0.i64(ptr {target}, ptr {source}, i64 {size}, i1 0)")

    @contextlib.contextmanager
    def loop(self, start, stop, step: int = 1, carry=()) -> Iterator["Turn"]:
        """Go from `start` to before `stop`; the body reads `carry`, sets `next`; after it, `result` is there."""
        self._names += 1
        here, turn = f"l{self._names}", Turn()
        entry = self.let(f"icmp slt i64 {start}, {stop}")
        self.lines += [f"  br label %{here}.from", f"{here}.from:"]
        self.lines += [f"  br i1 {entry}, label %{here}.body, label %{here}.done", f"{here}.body:"]
        turn.i, turn.carry, head = f"%{here}.i", [f"%{here}.c{n}" for n in range(len(carry))], len(self.lines)
        turn.next = turn.carry
        yield turn
        after = self.let(f"add nsw i64 {turn.i}, {step}")
        again = self.let(f"icmp slt i64 {after}, {stop}")
        self.lines += [f"  br label %{here}.end", f"{here}.end:"]
        self.lines += [f"  br i1 {again}, label %{here}.body, label %{here}.done", f"{here}.done:"]
        before, behind = f"%{here}.from", f"%{here}.end"
        phis = [f"  {turn.i} = phi i64 [{start}, {before}], [{after}, {behind}]"]
        turn.result = []
        for name, first, following in zip(turn.carry, carry, turn.next, strict=True):
            both = f"phi {self.vector} [{first}, {before}], [{following}, {behind}]"
            phis.append(f"  {name} = {both}")
            turn.result.append(self.let(both))
        self.lines[head:head] = phis


class Turn:
    """One loop's counter, and the vectors that it carries from turn to turn."""

    i: str
    carry: list[str]
    next: list[str]
    result: list[str]


_KNOWN: dict[tuple, str] = {}  # the names of programs that XLA has
_LOCK = threading.Lock()


def registered(write: Callable[..., int], options: tuple, name: str, dtype: str, workers: int) -> str:
    """Compile a program and give it to XLA, once; return the name by which `jax.ffi.ffi_call` finds it.

    Args:
      write: called as write(code, *options); writes the body, and returns into how many pieces the work is split.
      options: what tells this program from others of its kind, such as shapes.
      name: of the program, which is what a profile shows.
      dtype: "float32" or "float64".
      workers: threads that may take pieces at the same time.
    """
    key = write, options, dtype, workers, lanes(dtype)
    with _LOCK:
        if key not in _KNOWN:
            _KNOWN[key] = _registered(write, options, name, dtype, workers)
        return _KNOWN[key]


def _registered(*program) -> str:
    name, text = _program(*program)
    address = ctypes.c_void_p(_loaded(_compiled(text), name))
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(address), "cpu")
    return name


def _program(write: Callable[..., int], options: tuple, name: str, dtype: str, workers: int) -> tuple[str, str]:
    """Return the full name of a program, and its text."""
    code = Code(dtype)
    pieces = write(code, *options)
    parts = {
        "workers": min(workers, pieces),
        "pieces": pieces,
        "body": "\n".join(code.lines),
        "vector": code.vector,
        "fma": f"@llvm.fma.v{code.lanes}f{8 * code.bytes}",
        "major": INTERFACE[0],
        "minor": INTERFACE[1],
    }
    # The digest: a program that XLA kept calls the one it was compiled with, not another version of it.
    name = f"unimix_{name}_{dtype}_{digest(_PROGRAM.format(name='', **parts))[:8]}"
    return name, _PROGRAM.format(name=name, **parts)


def _compiled(text: str) -> bytes:
    """Return the object code of a program, from beside JAX's compile cache if it was compiled before."""
    import llvmlite.binding as llvm

    machine, name = _machine()[0], f"native-{digest(text)}"
    cache = jax.config.jax_enable_compilation_cache and jax.config.jax_compilation_cache_dir
    if cache and (found := workdir.read_cached(cache, name)):
        return found
    module = llvm.parse_assembly(text)
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = options.slp_vectorization = False
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    made = machine.emit_object(module)
    if cache:
        workdir.write_cached(cache, name, made)
    return made


def _loaded(code: bytes, name: str) -> int:
    """Return the address of a function in object code, which stays loaded until the process ends."""
    import llvmlite.binding as llvm

    engine = _engine()
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine.get_function_address(name)


@functools.cache
def _engine():
    import llvmlite.binding as llvm

    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine()[0])


# The version of XLA's interface (XLA_FFI_API_MAJOR and _MINOR in xla/ffi/api/c_api.h) for which programs are written.
# Offsets are its: those of XLA_FFI_CallFrame (extension 8, api 16, context 24, arguments 72, results 112), XLA_FFI_Api
# (Error_Destroy 64, ThreadPool_Schedule 136), XLA_FFI_Metadata_Extension (type 8, metadata 24) and XLA_FFI_Metadata
# (version 24).
INTERFACE = 0, 3
_PROGRAM = """
%State = type {{ i64, i64, i64, i64, ptr, ptr }}  ; pieces taken, pieces done, workers come, workers left, out, in

define ptr @{name}(ptr %frame) {{
  %extension.at = getelementptr i8, ptr %frame, i64 8
  %extension = load ptr, ptr %extension.at
  %api.at = getelementptr i8, ptr %frame, i64 16
  %api = load ptr, ptr %api.at
  %extended = icmp ne ptr %extension, null
  br i1 %extended, label %which, label %run

which:
  %type.at = getelementptr i8, ptr %extension, i64 8
  %type = load i32, ptr %type.at
  %asked = icmp eq i32 %type, 1
  br i1 %asked, label %describe, label %run

describe:  ; XLA asks for which version of its interface this is written, and refuses one that it does not speak
  %metadata.at = getelementptr i8, ptr %extension, i64 24
  %metadata = load ptr, ptr %metadata.at
  %answer = getelementptr i8, ptr %metadata, i64 24
  store {{ i32, i32 }} {{ i32 {major}, i32 {minor} }}, ptr %answer
  ret ptr null

run:
  %state = call ptr @malloc(i64 48)  ; not on the stack: a worker that comes late looks at it, too
  call void @llvm.memset.p0.i64(ptr %state, i8 0, i64 24, i1 0)
  %left = getelementptr %State, ptr %state, i32 0, i32 3
  store i64 {workers}, ptr %left
  %out.at = getelementptr i8, ptr %frame, i64 112
  %out = load ptr, ptr %out.at
  %out.to = getelementptr %State, ptr %state, i32 0, i32 4
  store ptr %out, ptr %out.to
  %in.at = getelementptr i8, ptr %frame, i64 72
  %in = load ptr, ptr %in.at
  %in.to = getelementptr %State, ptr %state, i32 0, i32 5
  store ptr %in, ptr %in.to
  %context.at = getelementptr i8, ptr %frame, i64 24
  %context = load ptr, ptr %context.at
  %schedule.at = getelementptr i8, ptr %api, i64 136
  %schedule = load ptr, ptr %schedule.at
  %order = alloca {{ i64, ptr, ptr, ptr, ptr }}
  %refusal = alloca {{ i64, ptr, ptr }}
  store {{ i64, ptr, ptr, ptr, ptr }} {{ i64 40, ptr null, ptr null, ptr @work, ptr null }}, ptr %order
  %order.context = getelementptr i8, ptr %order, i64 16
  store ptr %context, ptr %order.context
  %order.data = getelementptr i8, ptr %order, i64 32
  store ptr %state, ptr %order.data
  br label %call

call:  ; this thread is the first worker
  %called = phi i64 [ 1, %run ], [ %called.next, %calling ], [ %called.next, %fewer ]
  %enough = icmp sge i64 %called, {workers}
  br i1 %enough, label %mine, label %calling

calling:
  %error = call ptr %schedule(ptr %order)
  %called.next = add i64 %called, 1
  %refused = icmp ne ptr %error, null
  br i1 %refused, label %fewer, label %call

fewer:
  %forget.at = getelementptr i8, ptr %api, i64 64
  %forget = load ptr, ptr %forget.at
  store {{ i64, ptr, ptr }} {{ i64 24, ptr null, ptr null }}, ptr %refusal
  %refusal.error = getelementptr i8, ptr %refusal, i64 16
  store ptr %error, ptr %refusal.error
  call void %forget(ptr %refusal)
  call void @leave(ptr %state)
  br label %call

mine:
  call void @take(ptr %state)
  %done = getelementptr %State, ptr %state, i32 0, i32 1
  br label %wait

wait:  ; for pieces that others have begun, never for a worker that has not come
  %turns = phi i64 [ 0, %mine ], [ %turns.next, %pause ], [ %turns.next, %yield ]
  %count = load atomic i64, ptr %done acquire, align 8
  %ready = icmp eq i64 %count, {pieces}
  br i1 %ready, label %end, label %again

again:
  %turns.next = add i64 %turns, 1
  %short = icmp slt i64 %turns, 200  ; some microseconds, before this core is offered to whoever has the piece
  br i1 %short, label %pause, label %yield

pause:
  call void @llvm.x86.sse2.pause()
  br label %wait

yield:
  call i32 @sched_yield()
  br label %wait

end:
  call void @leave(ptr %state)
  ret ptr null
}}

define internal void @work(ptr %state) {{
  call void @take(ptr %state)
  call void @leave(ptr %state)
  ret void
}}

define internal void @leave(ptr %state) {{
  %left = getelementptr %State, ptr %state, i32 0, i32 3
  %before = atomicrmw sub ptr %left, i64 1 acq_rel
  %last = icmp eq i64 %before, 1
  br i1 %last, label %free, label %end

free:
  call void @free(ptr %state)
  br label %end

end:
  ret void
}}

define internal void @take(ptr %state) {{
  %come = getelementptr %State, ptr %state, i32 0, i32 2
  %worker = atomicrmw add ptr %come, i64 1 acq_rel
  %done = getelementptr %State, ptr %state, i32 0, i32 1
  %out.at = getelementptr %State, ptr %state, i32 0, i32 4
  %in.at = getelementptr %State, ptr %state, i32 0, i32 5
  %out = load ptr, ptr %out.at
  %in = load ptr, ptr %in.at
  br label %next

next:
  %piece = atomicrmw add ptr %state, i64 1 acq_rel
  %more = icmp slt i64 %piece, {pieces}
  br i1 %more, label %do, label %end

do:
  call void @piece(ptr %out, ptr %in, i64 %piece, i64 %worker)
  atomicrmw add ptr %done, i64 1 acq_rel
  br label %next

end:
  ret void
}}

define internal void @piece(ptr %out, ptr %in, i64 %piece, i64 %worker) {{
{body}
  ret void
}}

declare ptr @malloc(i64)
declare void @free(ptr)
declare i32 @sched_yield()
declare void @llvm.x86.sse2.pause()
declare {vector} {fma}({vector}, {vector}, {vector})
declare i64 @llvm.smin.i64(i64, i64)
declare i64 @llvm.smax.i64(i64, i64)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
"""
