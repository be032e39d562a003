"""Checkpoints: Orbax writes them, a digest tells the sound ones. Touches files."""

import contextlib
import hashlib
import logging
import pathlib

import jax
import numpy as np

from unimix_jax.errors import UserError

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def opened(directory: pathlib.Path, keep: int):
    """Open the checkpoints of a run; leaving waits until the last one is on disk.

    Args:
      directory: made if needed.
      keep: number of newest checkpoints that stay; at least 2, for one may be damaged.
    """
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(max(keep, 2)), cleanup_tmp_directories=True
    )
    manager = ocp.CheckpointManager(directory.absolute(), options=options)
    try:
        yield manager
    finally:
        try:
            manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise _not_written(directory, error) from error
        finally:
            manager.close()


def save(manager, step: int, state) -> None:
    """Begin to write the state after `step` steps.

    The state's arrays may be donated at once: what is being written keeps them alive.

    Raises:
      UserError: a checkpoint could not be written (a full disk).
      RuntimeError: Orbax refuses the step.
    """
    import orbax.checkpoint as ocp

    state = jax.device_get(state)
    content = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave({"digest": digest(state)}))
    try:
        saved = manager.save(step, args=content)
    except (OSError, ValueError) as error:  # of this one or of the one before
        raise _not_written(manager.directory, error) from error
    if not saved:  # it does so, silently, for a step at or below its newest
        raise RuntimeError(f"Orbax did not save step {step}; it has {manager.all_steps()}")


def restore_newest(manager, directory: pathlib.Path, like):
    """Return the newest sound state, as numpy arrays; move newer, damaged ones aside (`STEP.damaged`).

    Args:
      manager: of `opened`.
      directory: the same.
      like: a state of the same structure, shapes and types.

    Returns:
      The state; None if there never was a checkpoint.

    Raises:
      UserError: there are checkpoints, and none of them is sound; they are left as they are.
    """
    import orbax.checkpoint as ocp

    like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    template = ocp.args.Composite(state=ocp.args.StandardRestore(like), meta=ocp.args.JsonRestore())
    damaged = {}
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            restored = manager.restore(step, args=template)
            if digest(restored["state"]) == restored["meta"]["digest"]:
                break
            damaged[step] = "its numbers do not have their digest"
        except Exception as error:  # damage comes out as nearly any type
            damaged[step] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    else:
        if damaged or list(directory.glob("*.damaged*")):
            why = next(iter(damaged.values()), "they were moved aside")
            raise UserError(
                f"none of the checkpoints in {directory} is sound ({why}); give a new --workdir to start anew"
            )
        return None
    for step, why in damaged.items():
        _log.warning("checkpoint %d is damaged (%s); it is moved aside", step, why)
        (directory / str(step)).rename(_unused(directory / f"{step}.damaged"))
    if damaged:
        manager.reload()  # else its list is the old one, and it would refuse to save them anew
    return restored["state"]


def _not_written(directory, error: Exception) -> UserError:
    return UserError(f"a checkpoint in {directory} could not be written: {str(error).partition(chr(10))[0]}")


def digest(state) -> str:
    """Return a digest of the names, types, shapes and bytes of a state's leaves."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        leaf = np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}\n".encode())
        sha.update(np.ascontiguousarray(leaf).tobytes())
    return sha.hexdigest()


def _unused(path: pathlib.Path) -> pathlib.Path:
    names = [path, *(path.with_name(f"{path.name}-{i}") for i in range(2, 100))]
    return next(p for p in names if not p.exists())
