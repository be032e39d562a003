"""Programs as such: how XLA calls them, how threads share their work, how they are compiled and kept."""

import ctypes
import pathlib
import platform
import sys

import jax
import numpy as np
import pytest

from unimix_jax import storage
from unimix_jax.cpu_kernels import executable, handler, processor

from .comparison import needs_kernels


def test_on_the_processors_they_are_made_for_nothing_here_is_skipped():
    """The test extra brings llvmlite there: a skip elsewhere has a reason, there it hides a broken installation."""
    flags = pathlib.Path("/proc/cpuinfo").read_text().split() if sys.platform.startswith("linux") else []
    if platform.machine() == "x86_64" and {"avx2", "fma"} <= set(flags):
        assert processor.unsupported() == ""


def loaded(text, name):
    """Return a program as a function of the address of XLA's call frame."""
    address = executable.load(executable.compiled(text), name)
    return ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(address)


@needs_kernels
@pytest.mark.parametrize("pool", ["at once", "late", "refuses"])
def test_a_program_needs_no_worker_beside_its_caller(pool):
    """The handler, called as XLA calls it, with a pool that does what XLA's pool seldom does."""

    def write(code):
        """Add 1 to eight vectors, a piece each."""
        offset = code.times("%piece", code.lanes)
        one = code.broadcast("1.0")
        value = code.load(code.at(code.data("%in", 0), offset))
        code.store(code.sum(value, one), code.at(code.data("%out", 0), offset))
        return 8

    name, text = handler.handler(write, (), "test", "float32", 3)
    program = loaded(text, name)
    x = np.arange(8 * processor.lanes("float32"), dtype=np.float32)
    out = np.zeros(8 * processor.lanes("float32"), np.float32)
    task = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    asked, forgotten, late = [], [], []

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
    def schedule(order):
        size, _, context, work, state = (ctypes.c_uint64 * 5).from_address(order)
        asked.append((size, context))
        if pool == "refuses":
            return 4242
        (late.append if pool == "late" else lambda call: call())(lambda: task(work)(state))
        return None

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def destroy(error):
        forgotten.append(tuple((ctypes.c_uint64 * 3).from_address(error)))

    def buffers(array):
        buffer = (ctypes.c_uint64 * 6)(48, 0, 11, array.ctypes.data, 1, 0)
        return buffer, (ctypes.c_uint64 * 1)(ctypes.addressof(buffer))

    api, frame = (ctypes.c_uint64 * 20)(), (ctypes.c_uint64 * 20)()
    api[8], api[17] = (ctypes.cast(f, ctypes.c_void_p).value for f in (destroy, schedule))
    arguments, results = buffers(x), buffers(out)
    frame[2], frame[3] = ctypes.addressof(api), 77
    frame[9], frame[14] = ctypes.addressof(arguments[1]), ctypes.addressof(results[1])
    assert program(ctypes.addressof(frame)) is None
    np.testing.assert_array_equal(out, x + 1)
    out[:] = 0
    for call in late:
        call()
    assert not out.any()
    assert asked == [(40, 77)] * 2
    assert forgotten == ([(24, 0, 4242)] * 2 if pool == "refuses" else [])


def write_nothing(code):
    """Write a program of one piece that does nothing."""
    return 1


@needs_kernels
def test_a_program_names_the_interface_for_which_it_is_written_not_the_caller_s():
    """The handler, asked for its metadata as a later XLA asks."""
    name, text = handler.handler(write_nothing, (), "described", "float32", 1)
    program = loaded(text, name)
    frame, extension = (ctypes.c_uint64 * 20)(), (ctypes.c_uint64 * 4)()
    api, metadata = (ctypes.c_uint32 * 40)(), (ctypes.c_uint32 * 16)()
    api[8:10] = 7, 9  # XLA_FFI_Api.api_version
    frame[1], frame[2] = ctypes.addressof(extension), ctypes.addressof(api)
    extension[1], extension[3] = 1, ctypes.addressof(metadata)
    assert program(ctypes.addressof(frame)) is None
    assert (tuple(metadata[6:8]), *metadata[:6], *metadata[8:]) == ((0, 3), *[0] * 14)


@needs_kernels
def test_xla_refuses_a_program_for_an_interface_that_it_does_not_speak(monkeypatch):
    assert jax.devices()  # before JAX has a backend it keeps what is registered until then
    monkeypatch.setattr(handler, "INTERFACE", (0, 99))
    with pytest.raises(RuntimeError, match=r"API version \(0.99\) is incompatible"):
        executable._registered(write_nothing, (), "described", "float32", 1)


def use_cache(folder):
    jax.config.update("jax_compilation_cache_dir", folder)


@needs_kernels
def test_a_program_is_compiled_once_and_a_damaged_one_again(tmp_path, request):
    request.addfinalizer(lambda before=jax.config.jax_compilation_cache_dir: use_cache(before))
    use_cache(str(tmp_path))
    text = "define i64 @answer() { ret i64 42 }\n"
    first = executable.compiled(text)
    (path,) = tmp_path.iterdir()
    assert storage.read_cached(tmp_path, path.name) == first == executable.compiled(text)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert storage.read_cached(tmp_path, path.name) is None
    assert executable.compiled(text) == first == storage.read_cached(tmp_path, path.name)
    assert executable.load(first, "answer")
