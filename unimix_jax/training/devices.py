"""Devices: which ones a run uses, how a step is distributed over them, how arrays are placed on them."""

import functools
import importlib
import importlib.util
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from unimix_jax.errors import UserError, one_of
from unimix_jax.models import accelerator, ops
from unimix_jax.training import processes, runtime

_log = logging.getLogger(__name__)

AXIS = "batch"
REPLICATE = "replicate"  # the axis of the mesh over which replicates are distributed, before their batches are
SPMD = ("shard_map", "pmap")


def ops_backend(devices: Sequence, setting: str) -> str:
    """Return which backend of `models.ops` computes the layers on these devices, and register it.

    Args:
      devices: those of the run.
      setting: config.parallel.ops: "auto", "xla", "accelerator", "pallas" or "cpu_kernels"; CPU kernels are for CPUs
        only, "pallas" for GPUs only.

    Returns:
      The setting; for "auto" "xla", "accelerator" or "cpu_kernels".

    Raises:
      UserError: "cpu_kernels" or "pallas", and they cannot be used.
    """
    if setting == "pallas":
        if devices[0].platform != "gpu":
            raise UserError("config.parallel.ops is pallas, whose kernels are for GPUs only; set it to auto")
        from unimix_jax.models import pallas  # .4 s that other settings need not spend

        ops.register("pallas", pallas.implementations())
        return "pallas"
    if setting == "accelerator" or (setting == "auto" and devices[0].platform == "gpu"):
        ops.register("accelerator", accelerator.IMPLEMENTATIONS)
        return "accelerator"
    if setting == "xla" or (setting == "auto" and not is_cpu(devices)):
        return "xla"
    required = setting == "cpu_kernels"
    reason = _register_cpu_kernels(any_jaxlib=required) if is_cpu(devices) else "the devices are no CPUs"
    if reason and required:
        raise UserError(f"config.parallel.ops is cpu_kernels, which cannot be used here: {reason}; set it to auto")
    if reason:
        _log.info("steps take longer than they could, because the CPU kernels cannot be used: %s", reason)
    return "xla" if reason else "cpu_kernels"


def _register_cpu_kernels(any_jaxlib: bool) -> str:
    """Register the optional CPU kernels as a backend of `models.ops`; return why they cannot be used, "" if they can.

    Args:
      any_jaxlib: whether to try a version of jaxlib too with which the project was not tested.

    Returns:
      The reason, or "".
    """
    if importlib.util.find_spec("unimix_jax.cpu_kernels") is None:
        return "this installation does not have them"
    cpu_kernels = importlib.import_module("unimix_jax.cpu_kernels")  # the only import of the package, by its name
    if not (reason := cpu_kernels.unavailable(any_jaxlib)):
        ops.register("cpu_kernels", cpu_kernels.implementations(runtime.threads()))
    return reason


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


def run_devices(count: int = 0) -> list:
    """Return the first `count` devices of each process of the run, all of them for 0, process by process.

    Args:
      count: of one process.

    Raises:
      UserError: a process has fewer, or other ones than process 0.
    """
    own = local_devices(count)
    if processes.count() == 1:
        return own
    processes.check_agreement({"devices": len(own), "kind": own[0].device_kind}, "their devices")
    by_process: dict[int, list] = {}
    for device in jax.devices():
        by_process.setdefault(device.process_index, []).append(device)
    return [device for i in sorted(by_process) for device in by_process[i][: len(own)]]


def own_rows(devices: Sequence, size: int) -> range:
    """Return which rows of a batch are for the devices of this process.

    Args:
      devices: of `run_devices`.
      size: of the batch, a multiple of their number.
    """
    mine = [i for i, device in enumerate(devices) if device.process_index == processes.index()]
    share = size // len(devices)
    return range(mine[0] * share, (mine[-1] + 1) * share)


def own_part(array: jax.Array | np.ndarray) -> np.ndarray:
    """Return the rows of an array, shared out over its first axis, that are on devices of this process."""
    if isinstance(array, np.ndarray) or array.is_fully_addressable:
        return np.asarray(array)
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def gathered(blocks: np.ndarray) -> np.ndarray:
    """Return the rows of all processes, [blocks, rows, ...], from those of each one.

    Args:
      blocks: [blocks, rows of this process, ...].
    """
    if processes.count() == 1:
        return blocks
    from jax.experimental import multihost_utils

    of_all = np.asarray(multihost_utils.process_allgather(blocks))  # [processes, blocks, rows of each, ...]
    of_all = np.moveaxis(of_all, 0, 1)
    return of_all.reshape(len(blocks), -1, *blocks.shape[2:])


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
    split: Sequence[Any] = (None, 0, None),
    result: int | P | None = None,
    replicates: int = 1,
    donate: Sequence[int] = (),
    deterministic: bool = False,
) -> Callable:
    """Compile a step that is written for one device's share, for several devices.

    Args:
      step: called as step(*arguments, axis=AXIS); adds over the axis what all devices must agree on.
      devices: their number divides the axis of every split argument.
      spmd: "shard_map" (under `jax.jit`) or "pmap".
      split: for each argument, the axis of which each device gets its share (see `shard`), or None if each gets all
        of it (see `replicate`); or partition specs of the mesh's axes, REPLICATE and AXIS.
      result: the axis along which the result is put together from the devices' shares, 0, or None if it is equal on
        all; or partition specs.
      replicates: that are trained together; they are distributed over the devices as far as these can be shared out
        equally, and the batch of each over the rest.
      donate: arguments whose memory the result may take.
      deterministic: see `runtime.compiler_options`.

    Returns:
      A function of the same arguments. `pmap` leaves out `compiler_options`, which it cannot pass on.
    """
    one_of("wrapping (config.parallel.spmd)", spmd, SPMD)
    step = functools.partial(step, axis=AXIS)
    split_result = result is not None
    if spmd == "pmap":
        axes = tuple(None if s is None else 0 for s in split)  # `shard` moves the devices to the front
        mapped = jax.pmap(
            step, AXIS, in_axes=axes, out_axes=0 if split_result else None, devices=devices, donate_argnums=donate
        )
        if not split_result:
            return mapped
        return lambda *arguments: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), mapped(*arguments))
    # check_vma=False: with the check JAX adds the gradients of replicated parameters itself, and our
    # own sum would count every device once more (test_devices.py::test_update_is_the_same_on_any_devices).
    mapped = jax.shard_map(
        step,
        mesh=_mesh(devices, replicates),
        in_specs=tuple(_specs(axis) for axis in split),
        out_specs=_specs(result),
        check_vma=False,
    )
    return jax.jit(mapped, donate_argnums=donate, compiler_options=runtime.compiler_options(deterministic))


def shard(
    tree: Any,
    devices: Sequence,
    spmd: str = "shard_map",
    axis: int = 0,
    replicates: int = 1,
    of_each: bool = True,
) -> Any:
    """Put arrays on the devices, to each its share of an axis, for a step of `distribute`.

    Args:
      tree: arrays; the number of devices divides their axis. Of several processes each has the rows of `own_rows`.
      devices: those of `distribute`.
      spmd: that of `distribute`.
      axis: which one is shared.
      replicates: that are trained together.
      of_each: whether several replicates have arrays of their own, on a leading axis, which `axis` does not count.

    Returns:
      The same tree of arrays; under "pmap" with a leading axis of the devices, which places them itself.
    """
    if spmd == "pmap":

        def shares(x):
            return np.moveaxis(x.reshape(*x.shape[:axis], len(devices), -1, *x.shape[axis + 1 :]), axis, 0)

        return jax.tree.map(shares, tree)
    specs = P(REPLICATE, *_specs(axis)) if replicates > 1 and of_each else _specs(axis)
    sharding = NamedSharding(_mesh(devices, replicates), specs)
    if processes.count() > 1:
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)
    return jax.device_put(tree, sharding)


def replicate(tree: Any, devices: Sequence) -> Any:
    """Put a whole tree on every device; all processes have the same one."""
    sharding = NamedSharding(_mesh(devices), P())
    if processes.count() > 1:  # `device_put` would compare each array over the processes

        def placed(x):
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

        return jax.tree.map(placed, jax.device_get(tree))
    return jax.device_put(tree, sharding)


def place_replicates(tree: Any, devices: Sequence, replicates: int) -> Any:
    """Put arrays with a leading axis of replicates on the devices, to each those that it trains.

    Args:
      tree: arrays; without that axis for one replicate.
      devices: those of `distribute`.
      replicates: that are trained together.

    Returns:
      The same tree of arrays.
    """
    if replicates == 1:
        return replicate(tree, devices)
    return jax.device_put(tree, NamedSharding(_mesh(devices, replicates), P(REPLICATE)))


def batch_devices(devices: Sequence, replicates: int = 1) -> int:
    """Return the number of devices that share a batch: those that are left for each group of replicates."""
    return len(devices) // math.gcd(replicates, len(devices))


def _specs(axis: Any) -> Any:
    """Return the partition spec of a shared axis, or of none; specs stay as they are."""
    if axis is None:
        return P()
    return P(*(None,) * axis, AXIS) if isinstance(axis, int) else axis


def _mesh(devices: Sequence, replicates: int = 1) -> Mesh:
    # Not jax.make_mesh: its axes are explicit, and refuse arrays of the host.
    return Mesh(np.array(devices).reshape(-1, batch_devices(devices, replicates)), (REPLICATE, AXIS))
