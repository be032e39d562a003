"""Devices: preparing the runtime, spreading a step over them, placing arrays. The only room that knows of devices."""

import contextlib
import ctypes
import functools
import importlib.metadata
import importlib.util
import inspect
import logging
import os
import pathlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from unimix_jax import workdir
from unimix_jax.errors import UserError, one_of
from unimix_jax.models import assembly

_log = logging.getLogger(__name__)

AXIS = "batch"
WRAPPINGS = ("shard_map", "pmap")

# XLA's CPU backend hands convolutions to a library that is very slow at their weight gradients; its
# matrix products and sums are good. A step of ResNet-32 takes .8 of the time without.
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"}


@contextlib.contextmanager
def runtime(cores: int = 0):
    """Do a run in a process set up by `prepare_runtime`; its environment and JAX's options come back afterwards."""
    options = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    environment, before = os.environ.copy(), {name: getattr(jax.config, name) for name in options}
    prepare_runtime(cores)
    try:
        yield
    finally:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        for name, value in before.items():
            jax.config.update(name, value)


def prepare_runtime(cores: int = 0) -> None:
    """Set up a training process, before JAX starts its backend: the compile cache, threads and, for CPUs, the heap.

    Compiled programs are kept in $JAX_COMPILATION_CACHE_DIR or ~/.cache/unimix_jax/xla.

    Args:
      cores: threads of XLA on this machine; 0 for one a core. $PJRT_NPROC and $NPROC, which XLA reads, go before it.
    """
    if cores and not any(os.environ.get(name) for name in ("PJRT_NPROC", "NPROC")):
        os.environ["NPROC"] = str(cores)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "unimix_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if will_run_on_cpu():
        _keep_heap()


def will_run_on_cpu() -> bool:
    """Return whether JAX is going to run on CPUs, without starting its backend.

    So it does where it is told to ($JAX_PLATFORMS), and where nothing for accelerators is installed: no plugin (they
    register by an entry point or in the package `jax_plugins`) and no libtpu. Where something is installed but no
    device is there, the answer is no: the heap then stays as the system has it, which costs time only.
    """
    if platforms := jax.config.jax_platforms:
        return platforms.split(",")[0] == "cpu"
    if importlib.metadata.entry_points(group="jax_plugins") or importlib.util.find_spec("libtpu"):
        return False
    plugins = importlib.util.find_spec("jax_plugins")
    return plugins is None or not any(pkgutil.iter_modules(plugins.submodule_search_locations))


def _keep_heap() -> None:
    """Make glibc keep the memory of a step for the next one, in huge pages; elsewhere do nothing.

    Fresh pages cost a fifth of a CPU step. Process-wide, so only for training commands.
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
def compiler_options() -> dict[str, str]:
    """Return those of our compiler options that this backend knows; asked once, for 0.1 s."""
    if jax.default_backend() != "cpu":
        return {}
    known = {}
    for name, value in _CPU_OPTIONS.items():
        try:
            jax.jit(lambda x: x + 1, compiler_options={name: value}).lower(1.0).compile()
            known[name] = value
        except Exception:  # whatever a jaxlib without the option raises: it does without
            continue
    return known


# The interface by which XLA calls native programs is its public one; still each version is tried before it is let in.
_TESTED_JAXLIB = ("0.10.", "0.11.", "0.12.")
_AGREES = """
import sys
sys.path.append(sys.argv[1])
from unimix_jax.models import layers
print("agrees" if layers.native_agrees() else "differs")
"""


def kernels(devices: Sequence, wish: str) -> str:
    """Return which form of a network's layers these devices run, of `layers.KERNELS`.

    Args:
      devices: those of the run.
      wish: config.parallel.native: "auto", "on" or "off"; native programs are for CPUs only.

    Raises:
      UserError: "on", and they cannot be had.
    """
    if wish == "off":
        return "cpu" if is_cpu(devices) else "plain"
    why = _no_native(wish == "on") if is_cpu(devices) else "the devices are no CPUs"
    if why and wish == "on":
        raise UserError(f"config.parallel.native is on, but there are no native programs here: {why}; set it to auto")
    if not is_cpu(devices):
        return "plain"
    if why:
        _log.info("steps take longer than they could: there are no native programs, for %s", why)
    return "cpu" if why else "native"


@functools.cache
def _no_native(untested: bool) -> str:
    """Return why native programs cannot be had on this machine; "" if they can.

    They are machine code called by another's, where a mistake ends the process: so they are tried first in another
    one, on threads, until they agreed once with the plain layers for this kind of machine, jaxlib and source.
    """
    import jaxlib

    from unimix_jax.models import cpu, layers, native

    if why := assembly.missing():
        return why
    version = jaxlib.__version__
    if not (untested or version.startswith(_TESTED_JAXLIB)):
        return f"jaxlib {version} is none of those with which they were tested"
    try:
        source = [inspect.getsource(room) for room in (assembly, native, cpu, layers)]
    except OSError:
        return "their source is not here, by which a trial of them is remembered"
    cache, name = jax.config.jax_compilation_cache_dir, f"native-trial-{assembly.digest(version, *source)}"
    if cache and (answer := workdir.read_cached(cache, name)):
        return "" if answer == b"agrees" else answer.decode()
    _log.info("trying native programs, once on this machine")
    command = [sys.executable, "-c", _AGREES, str(pathlib.Path(__file__).parents[2])]
    # Without the filter a traceback ends with its error, not with a sentence on frames that were left out.
    several = {"JAX_PLATFORMS": "cpu", "NPROC": "4", "PJRT_NPROC": "4", "JAX_TRACEBACK_FILTERING": "off"}
    try:
        tried = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env={**os.environ, **several}, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"they could not be tried ({error})"
    why, known = _outcome(tried)
    if cache and known:
        workdir.write_cached(cache, name, (why or "agrees").encode())
    return why


_ERROR = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt)\b")


def _outcome(tried: subprocess.CompletedProcess) -> tuple[str, bool]:
    """Return why a trial of native programs failed, "" if it did not, and whether that is sure enough to be kept."""
    lines = [*tried.stdout.split("\n"), *tried.stderr.split("\n")]
    if tried.stdout.split()[-1:] == ["agrees"]:
        return "", True
    saying = [line for line in lines if line == "differs" or _ERROR.match(line)]
    last = (saying or [line for line in lines if line.strip()] or ["it said nothing"])[-1]
    killed = tried.returncode < 0
    return f"a trial of them ended with code {tried.returncode}: {last.strip()}", bool(saying or killed)


def environment(devices: Sequence, how: str, kernels: str) -> dict:
    """Return what the bits of a result depend on beside config and data: versions, devices, options.

    Args:
      devices: those of the run.
      how: their wrapping.
      kernels: the form of its network's layers.
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
        "cores": assembly.threads(),
        "how": how,
        "kernels": kernels,
        "compiler_options": compiler_options() if how == "shard_map" else {},  # pmap cannot pass them on
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def local_devices(count: int = 0) -> list:
    """Return the first `count` devices of this process, all of them for 0.

    Raises:
      UserError: there are fewer.
    """
    try:
        devices = jax.local_devices()
    except Exception as error:  # a backend that is asked for and not there raises what it likes
        raise UserError(f"JAX finds no device: {type(error).__name__} {str(error).partition(chr(10))[0]}") from None
    if count > len(devices):
        raise UserError(f"parallel.devices is {count}, but this process has {len(devices)} devices")
    return devices[: count or None]


def check_batch(size: int, devices: int, parts: int = 1) -> None:
    """Refuse a batch that does not come apart into equal shares.

    Args:
      size: images of the batch.
      devices: that share it.
      parts: of each device's share, config.accumulate.

    Raises:
      UserError: it is not a multiple of devices * parts; the nearest sizes that are.
    """
    share = devices * parts
    if size % share:
        below, above = size // share * share, rounded_up(size, share)
        of = f"{devices} device{'s' if devices > 1 else ''}"
        times = f" times {parts} parts of config.accumulate" if parts > 1 else ""
        nearest = f"{below} or {above}" if below else f"{above}"
        other = ", or choose another number of devices by --config.parallel.devices" if devices > 1 else ""
        raise UserError(f"config.batch_size is {size}, not a multiple of the {of}{times}; set it to {nearest}{other}")


def rounded_up(size: int, devices: int) -> int:
    """Return the smallest multiple of `devices` that is at least `size`."""
    return -(-size // devices) * devices


def is_cpu(devices: Sequence) -> bool:
    """Return whether these devices are the CPU, which is slow at loops around convolutions."""
    return devices[0].platform == "cpu"


def distribute(
    step: Callable,
    devices: Sequence,
    how: str = "shard_map",
    *,
    split: Sequence[bool] = (False, True, False),
    split_result: bool = False,
    donate: Sequence[int] = (),
) -> Callable:
    """Compile a step, written for one device's share, for several devices.

    Args:
      step: called as step(*arguments, axis=AXIS); adds over the axis what all devices must agree on.
      devices: their number divides the leading axis of every split argument.
      how: "shard_map" (under `jax.jit`) or "pmap".
      split: for each argument, whether each device gets its share of the leading axis (see `place`),
        or all of it (see `replicate`).
      split_result: whether the result is put together from the devices' shares, or equal on all.
      donate: arguments whose memory the result may take.

    Returns:
      A function of the same arguments. `pmap` leaves out `compiler_options`, which it cannot pass on.
    """
    one_of("wrapping (config.parallel.how)", how, WRAPPINGS)
    step = functools.partial(step, axis=AXIS)
    if how == "pmap":
        axes = tuple(0 if s else None for s in split)
        mapped = jax.pmap(
            step, AXIS, in_axes=axes, out_axes=0 if split_result else None, devices=devices, donate_argnums=donate
        )
        if not split_result:
            return mapped
        return lambda *arguments: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), mapped(*arguments))
    # check_vma=False: with the check JAX adds the gradients of replicated parameters itself, and our
    # own sum would count every device once more (test_parallel.py::test_update_is_the_same).
    mapped = jax.shard_map(
        step,
        mesh=_mesh(devices),
        in_specs=tuple(P(AXIS) if s else P() for s in split),
        out_specs=P(AXIS) if split_result else P(),
        check_vma=False,
    )
    return jax.jit(mapped, donate_argnums=donate, compiler_options=compiler_options())


def place(tree, devices: Sequence, how: str = "shard_map"):
    """Put a batch onto the devices, each its share of the leading axis, for a step of `distribute`."""
    if how == "pmap":
        return jax.tree.map(lambda x: x.reshape(len(devices), -1, *x.shape[1:]), tree)
    return jax.device_put(tree, NamedSharding(_mesh(devices), P(AXIS)))


def replicate(tree, devices: Sequence):
    """Put a tree onto every device, whole."""
    return jax.device_put(tree, NamedSharding(_mesh(devices), P()))


def _mesh(devices: Sequence) -> Mesh:
    # Not jax.make_mesh: its axes are explicit, and refuse arrays of the host.
    return Mesh(np.array(devices), (AXIS,))
