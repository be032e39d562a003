"""Checkpoints: Orbax writes them, and a digest shows which of them are sound."""

import contextlib
import hashlib
import json
import logging
import pathlib
import threading
import time
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from unimix_jax import storage
from unimix_jax.errors import Failure, UserError
from unimix_jax.training import processes

if TYPE_CHECKING:
    from orbax.checkpoint import CheckpointManager

_log = logging.getLogger(__name__)

_LONGEST_SAVE = 600.0  # seconds
UNNAMED = "unnamed"  # the id of runs that began before a checkpoint named its run


@contextlib.contextmanager
def opened(directory: pathlib.Path, keep: int, always: Collection[int] = ()) -> Iterator["CheckpointManager"]:
    """Open the checkpoints of a run; leaving the context waits until the last checkpoint is on disk.

    Args:
      directory: of the checkpoints, made if needed.
      keep: the number of newest checkpoints that stay; at least 2, because one may be damaged.
      always: steps whose checkpoints stay, however old they are.

    Yields:
      The manager for `save` and `restore_newest`.

    Raises:
      Failure: the last checkpoint could not be written (a full disk).
    """
    import orbax.checkpoint as ocp

    policies = ocp.checkpoint_managers
    kept = policies.AnyPreservationPolicy([policies.LatestN(max(keep, 2)), policies.CustomSteps([*always])])
    options = ocp.CheckpointManagerOptions(preservation_policy=kept, cleanup_tmp_directories=True)
    manager = ocp.CheckpointManager(directory.absolute(), options=options)
    try:
        yield manager
    finally:
        try:
            try:
                manager.wait_until_finished()
            finally:
                manager.close()  # which waits, and may fail, once more
        except (OSError, ValueError) as error:
            raise Failure(_not_written(directory, error)) from error


class Duration:
    """How long the last save took until it was complete on disk, which is after `save` has returned."""

    def __init__(self):
        self.seconds: float | None = None

    def watch(self, manager: "CheckpointManager", step: int) -> None:
        """Measure the save of a step that begins now, in a thread.

        Args:
          manager: of `opened`.
          step: that is saved.
        """
        begun, path = time.monotonic(), manager.directory / str(step)

        def wait() -> None:
            while not path.exists():  # it is renamed to this when it is complete
                if time.monotonic() - begun > _LONGEST_SAVE:
                    return
                time.sleep(0.05)
            self.seconds = time.monotonic() - begun

        threading.Thread(target=wait, daemon=True, name="save").start()


def save(manager: "CheckpointManager", step: int, state: Any, run: str = "") -> None:
    """Start to write the state after `step` steps.

    The arrays of the state may be donated at once, because they are copied to the host first.

    Args:
      manager: of `opened`.
      step: of the state.
      state: a tree of arrays.
      run: the id of the run, which the checkpoint names.

    Raises:
      Failure: a checkpoint could not be written (a full disk).
      RuntimeError: Orbax refuses the step.
    """
    import orbax.checkpoint as ocp

    state = jax.device_get(state)
    meta = {"digest": digest(state), "step": step, "run": run or UNNAMED}
    content = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
    try:
        saved = manager.save(step, args=content)
    except (OSError, ValueError) as error:  # of this one or of the one before
        raise Failure(_not_written(manager.directory, error)) from error
    if not saved:  # it does so, silently, for a step at or below its newest
        raise RuntimeError(f"Orbax did not save step {step}; it has {manager.all_steps()}")


def restore_newest(manager: "CheckpointManager", directory: pathlib.Path, like: Any, run: str = "") -> Any:
    """Return the newest sound state of a run as numpy arrays; move newer checkpoints that are not sound aside.

    A damaged checkpoint becomes `STEP.damaged`; one of another run, or of another step than its name says, becomes
    `STEP.foreign`.

    Args:
      manager: of `opened`.
      directory: of the checkpoints.
      like: a state of the same structure, shapes and types.
      run: the id that the checkpoints must name; "" accepts those of any run.

    Returns:
      The state; None if there never was a checkpoint.

    Raises:
      UserError: none of the checkpoints is sound; they stay as they are.
    """
    naming, template = _templates(like)
    wrong = {}
    for step in processes.from_first(lambda: sorted(manager.all_steps(), reverse=True)):
        state, fault = _restored(manager, step, naming, template, run)
        faults = [fault for fault in map(json.loads, processes.exchanged(json.dumps(fault))) if fault]
        if not faults:
            break
        wrong[step] = faults[0]  # of one process at least: then none goes on from this step
    else:
        if wrong or list(directory.glob("*.damaged*")) or list(directory.glob("*.foreign*")):
            why = next((f"checkpoint {step} {why}" for step, (_, why) in wrong.items()), "they were moved aside")
            raise UserError(
                f"none of the checkpoints in {directory} is sound ({why}); give a new --workdir to start anew"
            )
        return None
    if processes.is_first():
        for step, (suffix, why) in wrong.items():
            aside = storage.unused(directory / f"{step}.{suffix}")
            _log.warning("checkpoint %d %s; it is moved aside, to %s", step, why, aside.name)
            (directory / str(step)).rename(aside)
    processes.all_of(True)  # the others go on when this is done
    if wrong:
        manager.reload()  # otherwise it would refuse to save these steps again
    return state


def restore_step(manager: "CheckpointManager", step: int, like: Any, run: str = "") -> Any:
    """Return the state of a step as numpy arrays; None if its checkpoint is not there, or not sound.

    Args:
      manager: of `opened`.
      step: of the state.
      like: see `restore_newest`.
      run: see `restore_newest`.
    """
    if not processes.all_of(step in manager.all_steps()):
        return None
    state, fault = _restored(manager, step, *_templates(like), run)
    return state if processes.all_of(fault is None) else None


def _templates(like: Any) -> tuple[Any, Any]:
    """Return what Orbax restores: the name of a checkpoint, and its state."""
    import orbax.checkpoint as ocp

    like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    naming = ocp.args.Composite(meta=ocp.args.JsonRestore())
    return naming, ocp.args.Composite(state=ocp.args.StandardRestore(like))


def _restored(manager: "CheckpointManager", step: int, naming: Any, template: Any, run: str) -> tuple[Any, Any]:
    """Return the state of a step and None, or None and what is wrong with it: a suffix for it, and a text."""
    try:
        meta = manager.restore(step, args=naming)["meta"]
        if foreign := _foreign(meta, step, run):
            return None, ("foreign", foreign)
        state = manager.restore(step, args=template)["state"]
        if digest(state) != meta["digest"]:
            return None, ("damaged", "is damaged (its numbers do not have their digest)")
        if (own := int(np.max(getattr(state, "step", step)))) != step:  # older versions wrote no step into `meta`
            return None, ("foreign", f"is of another step, {own}")
    except Exception as error:  # damage raises nearly any type of error
        return None, ("damaged", f"is damaged ({type(error).__name__}: {str(error).partition(chr(10))[0]})")
    return state, None


def _foreign(meta: dict, step: int, run: str) -> str:
    """Return why a checkpoint belongs to another step or run than it should; "" if it does not."""
    if meta.get("step", step) != step:
        return f"is of another step, {meta['step']}"
    named = meta.get("run", UNNAMED)
    if run and named != run:
        return "does not say of which run it is" if named == UNNAMED else f"is of another run ({named}, not {run})"
    return ""


def _not_written(directory: pathlib.Path, error: Exception) -> str:
    return f"a checkpoint in {directory} could not be written: {str(error).partition(chr(10))[0]}"


def digest(state: Any) -> str:
    """Return a digest of the names, types, shapes and bytes of a state's leaves."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        leaf = np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}\n".encode())
        sha.update(np.ascontiguousarray(leaf).tobytes())
    return sha.hexdigest()
