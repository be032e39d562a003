"""The process of a run: the compile cache, threads and heap of a CPU, compiler options, and what bits depend on."""

import contextlib
import ctypes
import functools
import importlib.metadata
import importlib.util
import logging
import os
import pathlib
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from unimix_jax.training import processes

# XLA's CPU backend hands convolutions to a library that is very slow at their weight gradients; its
# matrix products and sums are good. A step of ResNet-32 takes .8 of the time without.
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"}
# A step of a small network is bound by its launches. XLA records kernels into CUDA graphs, but by default no
# convolutions, and no graph of less than five kernels: as convolutions stand everywhere, next to nothing is recorded.
# Of several values the first one that the version of XLA knows is taken.
_GRAPHS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN"
_GPU_OPTIONS = {
    "xla_gpu_enable_command_buffer": (f"{_GRAPHS},CONVOLUTION", _GRAPHS),
    "xla_gpu_graph_min_graph_size": (1,),
}
_DETERMINISTIC_GPU_OPTIONS = {"xla_gpu_exclude_nondeterministic_ops": (True,)}

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def runtime(cpu_threads: int = 0) -> Iterator[None]:
    """Prepare the process for a run by `prepare_runtime`; restore its environment and JAX's options afterwards."""
    options = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    environment, before = os.environ.copy(), {name: getattr(jax.config, name) for name in options}
    prepare_runtime(cpu_threads)
    try:
        yield
    finally:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        for name, value in before.items():
            jax.config.update(name, value)


def prepare_runtime(cpu_threads: int = 0) -> None:
    """Set up a training process, before JAX starts its backend: the compile cache, threads and, for CPUs, the heap.

    Compiled programs are kept in $JAX_COMPILATION_CACHE_DIR or ~/.cache/unimix_jax/xla.

    Args:
      cpu_threads: threads of XLA on this machine; 0 for one a core. $PJRT_NPROC and $NPROC of XLA come first.
    """
    if cpu_threads and not any(os.environ.get(name) for name in ("PJRT_NPROC", "NPROC")):
        os.environ["NPROC"] = str(cpu_threads)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "unimix_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if will_run_on_cpu():
        _keep_heap()


def will_run_on_cpu() -> bool:
    """Return whether JAX is going to run on CPUs, without starting its backend.

    It does if $JAX_PLATFORMS says so, or if no plugin for accelerators is installed (plugins register by an entry
    point or in the package `jax_plugins`) and no libtpu. If a plugin is installed but no device exists, the answer is
    no: the heap then stays as the system has it, which only costs time.
    """
    if platforms := jax.config.jax_platforms:
        return platforms.split(",")[0] == "cpu"
    if importlib.metadata.entry_points(group="jax_plugins") or importlib.util.find_spec("libtpu"):
        return False
    plugins = importlib.util.find_spec("jax_plugins")
    return plugins is None or not any(pkgutil.iter_modules(plugins.submodule_search_locations))


def _keep_heap() -> None:
    """Make glibc keep the memory of a step for the next one, in huge pages; do nothing on other systems.

    New pages cost a fifth of a step on a CPU. The setting holds for the whole process, so only training uses it.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    libc.mallopt(-8, 1)  # M_ARENA_MAX: all threads share the heap that is kept
    libc.mallopt(-4, 0)  # M_MMAP_MAX: large blocks come from it too
    libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: what was touched stays
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size, huge = 3 * 2**29, 2**21  # 1.5 GiB, what a step of ResNet-32 needs; pages of 2 MiB
    if block := libc.malloc(size):  # reserved and given back: nothing is touched yet
        start = (block + huge - 1) & -huge
        libc.madvise(start, (size - (start - block)) & -huge, 14)  # MADV_HUGEPAGE
        libc.free(block)


@functools.cache
def compiler_options(deterministic: bool = False) -> dict[str, Any]:
    """Return the project's compiler options that this backend knows; the first call takes 0.1 s.

    An option that $XLA_FLAGS names is left as it says. One that the version of XLA does not know is left out, and the
    log says so.

    Args:
      deterministic: on GPUs, leave out programs whose sums come in an order of their own.
    """
    wanted = {
        "cpu": {name: (value,) for name, value in _CPU_OPTIONS.items()},
        "gpu": _GPU_OPTIONS | (_DETERMINISTIC_GPU_OPTIONS if deterministic else {}),
    }
    known = {}
    for name, values in wanted.get(jax.default_backend(), {}).items():
        if name in os.environ.get("XLA_FLAGS", ""):
            continue
        value = next((value for value in values if _is_known(name, value)), None)
        if value is None:
            _log.info("this version of XLA does not take %s=%s, so programs are compiled without", name, values[0])
        else:
            known[name] = value
    return known


def _is_known(name: str, value: Any) -> bool:
    try:
        jax.jit(lambda x: x + 1, compiler_options={name: value}).lower(1.0).compile()
    except Exception:  # whatever a jaxlib without the option raises
        return False
    return True


def threads() -> int:
    """Return the number of threads of XLA: what its variables say, or one for each core of this process."""
    for name in ("PJRT_NPROC", "NPROC"):
        if os.environ.get(name, "").isdecimal():
            return max(1, int(os.environ[name]))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(
    devices: Sequence, spmd: str, ops: str, steps_per_dispatch: int = 1, deterministic: bool = False
) -> dict:
    """Return what the bits of a result depend on beside config and data: versions, devices, options.

    Args:
      devices: those of the run.
      spmd: how a step is distributed over them.
      ops: the backend of the layers.
      steps_per_dispatch: of `dispatch.steps_per_dispatch`.
      deterministic: config.parallel.deterministic.
    """
    import flax
    import jaxlib
    import optax

    modules = {"jax": jax, "jaxlib": jaxlib, "flax": flax, "optax": optax, "numpy": np}
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        **{name: module.__version__ for name, module in modules.items()},
        "device": devices[0].device_kind,
        "devices": len(devices),
        "cpu_threads": threads(),
        "spmd": spmd,
        "ops": ops,
        "steps_per_dispatch": steps_per_dispatch,
        "matmul_precision": str(jax.config.jax_default_matmul_precision or "default"),
        "compiler_options": compiler_options(deterministic) if spmd == "shard_map" else {},  # pmap cannot pass them on
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def peak_device_memory_mib(devices: Sequence) -> int | None:
    """Return the largest memory that was used on one of these devices, in MiB; None if they do not say (CPUs).

    Args:
      devices: those of the run.
    """
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in processes.own(devices)]
    return None if None in peaks else max(peaks) // 2**20


def peak_memory_mib() -> int | None:
    """Return the largest memory that this process has held, in MiB; None if the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10)
