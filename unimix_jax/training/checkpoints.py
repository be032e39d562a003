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

    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells 60 lines a save
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
            raise UserError(f"cannot write a checkpoint in {directory}: {str(error).splitlines()[0]}") from error
        finally:
            manager.close()


def save(manager, step: int, state) -> None:
    """Begin to write the state after `step` steps; it is copied before this returns.

    Raises:
      UserError: the one before could not be written (a full disk).
      RuntimeError: Orbax refuses the step.
    """
    import orbax.checkpoint as ocp

    state = jax.device_get(state)
    try:
        saved = manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave({"digest": digest(state)})
            ),
        )
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write the checkpoint of step {step}: {str(error).splitlines()[0]}") from error
    if not saved:  # it does so, silently, for a step at or below its newest
        raise RuntimeError(f"Orbax did not save step {step}; it has {manager.all_steps()}")


def restore_newest(manager, directory: pathlib.Path, like):
    """Return the newest sound state, as numpy arrays, and move damaged ones aside (`STEP.damaged`).

    Args:
      manager: of `opened`.
      directory: the same.
      like: a state of the same structure, shapes and types.

    Returns:
      The state; None if there is no checkpoint.

    Raises:
      UserError: there are checkpoints, and none of them is sound.
    """
    import orbax.checkpoint as ocp

    like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    steps = sorted(manager.all_steps(), reverse=True)
    for step in steps:
        try:
            restored = manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like), meta=ocp.args.JsonRestore())
            )
            if digest(restored["state"]) == restored["meta"]["digest"]:
                # Moving a damaged one aside leaves the manager's list as it was, and it would refuse to save it anew.
                manager.reload()
                return restored["state"]
            reason = "its numbers do not have their digest"
        except Exception as error:  # damage comes out as nearly any type
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        _log.warning("checkpoint %d is damaged (%s); it is moved aside", step, reason)
        (directory / str(step)).rename(_unused(directory / f"{step}.damaged"))
    if steps:
        raise UserError(f"none of the checkpoints in {directory} is sound; give a new --workdir to start anew")
    return None


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
