"""How many steps one program takes, and which.

Between two programs the host works: it hands over some hundred arrays and reads the sums. With the training images on
the devices, a program takes many steps and needs nothing of the host but indices. It ends where the host must act:
evaluations and checkpoints follow an epoch, and another stage has another program.
"""

import math
from collections.abc import Iterator, Sequence

from unimix_jax.errors import UserError
from unimix_jax.training import processes
from unimix_jax.training.devices import is_cpu

_LARGEST = 512  # steps of a dispatch unless more are asked for: a signal to stop is heeded after them
_SHARE_OF_MEMORY = 0.25  # of a device, which images may take unless they are asked for


def steps_per_dispatch(setting: int, steps_per_epoch: int, image_bytes: int | None, devices: Sequence) -> int:
    """Return the number of steps that one program takes.

    Args:
      setting: config.steps_per_dispatch; 0 for the best number here.
      steps_per_epoch: steps of an epoch, after which the host may have to act.
      image_bytes: of the images of all splits; None where they are read from files.
      devices: those of the run.

    Returns:
      The setting. For 0: 1 on CPUs, whose compiler is slow at convolutions in loops, and for images that are read
      from files or take more than a quarter of a device's memory; otherwise an equal part of an epoch, of at most 512
      steps.

    Raises:
      UserError: the setting is more than an epoch, or more than 1 for images that are read from files.
    """
    if setting > 1 and image_bytes is None:
        raise UserError(
            f"config.steps_per_dispatch is {setting}; it must be 0 or 1 for images that are read from files, which the "
            "host loads for each step"
        )
    if setting > steps_per_epoch:
        raise UserError(
            f"config.steps_per_dispatch is {setting}; it must be at most {steps_per_epoch}, the steps of an epoch"
        )
    if setting:
        return setting
    if is_cpu(devices) or image_bytes is None or image_bytes > _SHARE_OF_MEMORY * _memory(processes.own(devices)[0]):
        return 1
    return steps_per_epoch // -(-steps_per_epoch // _LARGEST)


def ranges(first: int, last: int, steps_per_epoch: int, size: int) -> Iterator[range]:
    """Cut the steps first, ..., last - 1 into dispatches: of `size` steps, counted from the start of each epoch, or 1.

    Two lengths need two programs, whatever the ends of epochs and stages. The cuts do not depend on `first`, as long
    as it is itself one of them: a run that goes on runs the same programs as one that was not stopped.

    Args:
      first: the number of the first step, from 0.
      last: one more than the number of the last step.
      steps_per_epoch: steps of an epoch, counted from step 0.
      size: of `steps_per_dispatch`.

    Yields:
      The numbers of the steps of each dispatch.

    Example:
      >>> list(ranges(0, 13, 8, 3))
      [range(0, 3), range(3, 6), range(6, 7), range(7, 8), range(8, 11), range(11, 12), range(12, 13)]
    """
    while first < last:
        done = first % steps_per_epoch
        whole = done % size == 0 and done + size <= steps_per_epoch and first + size <= last
        yield range(first, first := first + (size if whole else 1))


def _memory(device) -> float:
    """Return the bytes of a device's memory; infinity if it does not say."""
    return (device.memory_stats() or {}).get("bytes_limit", math.inf)
