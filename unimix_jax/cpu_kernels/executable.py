"""Compile programs with llvmlite, and let XLA call them through its foreign function interface (FFI)."""

import ctypes
import functools
import threading
from collections.abc import Callable
from typing import Any

import jax

from unimix_jax import storage
from unimix_jax.cpu_kernels import handler, processor

_MULTIPLY_ADDS_PER_WORKER = 4_000_000  # these take as long as waking a thread
_NAMES: dict[tuple, str] = {}  # of the programs that XLA knows, by all that they depend on
_LOCK = threading.Lock()


def supports(dtype: Any, channels: int) -> bool:
    """Return whether there are programs for a type and a number of channels: all vectors must be full.

    Args:
      dtype: of all arrays.
      channels: of the arrays that a program reads or writes by vectors.
    """
    return str(dtype) in processor.BYTES and channels % processor.lanes(str(dtype)) == 0


def check(fits: bool, channels: int, *arrays: jax.Array) -> None:
    """Refuse arrays for which a program would read or write outside of them.

    Args:
      fits: whether the shapes fit together.
      channels: as in `supports`.
      *arrays: of one dtype.

    Raises:
      ValueError: no program takes these arrays.
    """
    dtypes = {str(array.dtype) for array in arrays}
    if (
        not fits
        or len(dtypes) > 1
        or not supports(arrays[0].dtype, channels)
        or not all(array.size for array in arrays)
    ):
        shapes = [f"{array.dtype}{list(array.shape)}" for array in arrays]
        raise ValueError(f"no program for {channels} channels of {shapes}")


def worker_count(multiply_adds: int, threads: int) -> int:
    """Return how many threads share a program's work.

    Args:
      multiply_adds: of the whole work.
      threads: of XLA.
    """
    return max(1, min(threads, multiply_adds // _MULTIPLY_ADDS_PER_WORKER))


def call(write: Callable[..., int], options: tuple, workers: int, out: Any, *arguments: Any) -> Any:
    """Call a program, which is compiled at the first call.

    Args:
      write: as in `handler.handler`.
      options: as in `handler.handler`.
      workers: as in `handler.handler`.
      out: shapes and dtypes of the results, a list of jax.ShapeDtypeStruct.
      *arguments: arrays; the last one has the dtype of the program.

    Returns:
      A list of arrays.
    """
    numbers = "_".join(str(options).translate(str.maketrans("(),", "   ")).split())
    # Such as conv2d_128_32_32_16_128_32_32_16_3_1_1_1_2.
    name = f"{write.__name__.removeprefix('_').removeprefix('write_')}_{numbers}"
    name = registered(write, options, name, str(arguments[-1].dtype), workers)
    return jax.ffi.ffi_call(name, out, vmap_method="sequential")(*arguments)


def registered(write: Callable[..., int], options: tuple, name: str, dtype: str, workers: int) -> str:
    """Compile a program and register it with XLA, once.

    Args:
      write: as in `handler.handler`.
      options: as in `handler.handler`.
      name: as in `handler.handler`.
      dtype: as in `handler.handler`.
      workers: as in `handler.handler`.

    Returns:
      The name by which `jax.ffi.ffi_call` finds it.
    """
    key = write, options, dtype, workers, processor.lanes(dtype)
    with _LOCK:
        if key not in _NAMES:
            _NAMES[key] = _registered(write, options, name, dtype, workers)
        return _NAMES[key]


def _registered(*program) -> str:
    name, text = handler.handler(*program)
    address = ctypes.c_void_p(load(compiled(text), name))
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(address), "cpu")
    return name


def compiled(text: str) -> bytes:
    """Return the object code of a program, from beside JAX's compile cache if it was compiled before.

    Args:
      text: of the program.
    """
    import llvmlite.binding as llvm

    machine, name = processor.target()[0], f"cpu_kernels-{processor.digest(text)}"
    cache = jax.config.jax_enable_compilation_cache and jax.config.jax_compilation_cache_dir
    if cache and (cached := storage.read_cached(cache, name)):
        return cached
    module = llvm.parse_assembly(text)
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = options.slp_vectorization = False
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    code = machine.emit_object(module)
    if cache:
        storage.write_cached(cache, name, code)
    return code


def load(code: bytes, name: str) -> int:
    """Load object code, which stays until the process ends.

    Args:
      code: of `compiled`.
      name: of a function in it.

    Returns:
      The address of the function.
    """
    import llvmlite.binding as llvm

    engine = _engine()
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine.get_function_address(name)


@functools.cache
def _engine():
    import llvmlite.binding as llvm

    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), processor.target()[0])
