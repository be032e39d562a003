"""Devices: which ones a run uses, how a step is distributed over them, how arrays are placed on them."""

import functools
import inspect
import logging
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from unimix_jax import storage
from unimix_jax.errors import UserError, one_of
from unimix_jax.models import assembly
from unimix_jax.training.runtime import compiler_options

_log = logging.getLogger(__name__)

AXIS = "batch"
SPMD = ("shard_map", "pmap")


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
      wish: config.parallel.ops: "auto", "cpu_kernels" or "xla"; native programs are for CPUs only.

    Raises:
      UserError: "cpu_kernels", and they cannot be had.
    """
    if wish == "xla":
        return "cpu" if is_cpu(devices) else "plain"
    why = _no_native(wish == "cpu_kernels") if is_cpu(devices) else "the devices are no CPUs"
    if why and wish == "cpu_kernels":
        raise UserError(
            f"config.parallel.ops is cpu_kernels, but there are no native programs here: {why}; set it to auto"
        )
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
    cache, name = jax.config.jax_compilation_cache_dir, f"native-agrees-{assembly.digest(version, *source)}"
    if cache and (answer := storage.read_cached(cache, name)):
        return "" if answer == b"agrees" else answer.decode()
    _log.info("trying native programs, once on this machine")
    command = [sys.executable, "-c", _AGREES, str(pathlib.Path(__file__).parents[2])]
    several = {"JAX_PLATFORMS": "cpu", "NPROC": "4", "PJRT_NPROC": "4"}
    try:
        tried = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env={**os.environ, **several}, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"they could not be tried ({error})"
    why = ""
    if tried.stdout.split()[-1:] != ["agrees"]:
        last = (tried.stdout + tried.stderr).strip().rpartition("\n")[2]
        why = f"a trial of them ended with code {tried.returncode}: {last}"
    if cache:
        storage.write_cached(cache, name, (why or "agrees").encode())
    return why


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
    """Refuse a batch that cannot be divided into equal shares.

    Args:
      size: images of the batch.
      devices: that share it.
      parts: of each device's share, config.grad_accum_steps.

    Raises:
      UserError: it is not a multiple of devices * parts; the nearest sizes that are.
    """
    share = devices * parts
    if size % share:
        below, above = size // share * share, rounded_up(size, share)
        of = f"{devices} device{'s' if devices > 1 else ''}"
        times = f" times {parts} parts of config.grad_accum_steps" if parts > 1 else ""
        nearest = f"{below} or {above}" if below else f"{above}"
        other = ", or choose another number of devices by --config.parallel.devices" if devices > 1 else ""
        raise UserError(f"config.batch_size is {size}, not a multiple of the {of}{times}; set it to {nearest}{other}")


def rounded_up(size: int, devices: int) -> int:
    """Return the smallest multiple of `devices` that is at least `size`."""
    return -(-size // devices) * devices


def is_cpu(devices: Sequence) -> bool:
    """Return whether these devices are CPUs, which are slow at loops around convolutions."""
    return devices[0].platform == "cpu"


def distribute(
    step: Callable,
    devices: Sequence,
    spmd: str = "shard_map",
    *,
    split: Sequence[bool] = (False, True, False),
    split_result: bool = False,
    donate: Sequence[int] = (),
) -> Callable:
    """Compile a step that is written for one device's share, for several devices.

    Args:
      step: called as step(*arguments, axis=AXIS); adds over the axis what all devices must agree on.
      devices: their number divides the leading axis of every split argument.
      spmd: "shard_map" (under `jax.jit`) or "pmap".
      split: for each argument, whether each device gets its share of the leading axis (see `shard`),
        or all of it (see `replicate`).
      split_result: whether the result is put together from the devices' shares, or equal on all.
      donate: arguments whose memory the result may take.

    Returns:
      A function of the same arguments. `pmap` leaves out `compiler_options`, which it cannot pass on.
    """
    one_of("wrapping (config.parallel.spmd)", spmd, SPMD)
    step = functools.partial(step, axis=AXIS)
    if spmd == "pmap":
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


def shard(tree: Any, devices: Sequence, spmd: str = "shard_map") -> Any:
    """Put a batch on the devices, to each its share of the leading axis, for a step of `distribute`."""
    if spmd == "pmap":
        return jax.tree.map(lambda x: x.reshape(len(devices), -1, *x.shape[1:]), tree)
    return jax.device_put(tree, NamedSharding(_mesh(devices), P(AXIS)))


def replicate(tree: Any, devices: Sequence) -> Any:
    """Put a whole tree on every device."""
    return jax.device_put(tree, NamedSharding(_mesh(devices), P()))


def _mesh(devices: Sequence) -> Mesh:
    # Not jax.make_mesh: its axes are explicit, and refuse arrays of the host.
    return Mesh(np.array(devices), (AXIS,))
