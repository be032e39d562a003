"""Whether a device computes what a CPU does: logits and one update of the paper's network and method."""

import pathlib

import jax
import numpy as np

from accelerator.experiments import Scale, Steps, experiment, with_variables
from unimix_jax.training import predict

IMAGES = 1000  # whose logits are compared


def computed(scale: Scale, data: str, *, dtype: str, precision: str, ops: str, variables: dict | None = None) -> dict:
    """Return first variables, logits of test images, and the change of every parameter in one step, as flat arrays.

    Args:
      scale: that of the experiment.
      data: folder of the images.
      dtype: of convolutions and activations.
      precision: of products, see `jax.default_matmul_precision`.
      ops: backend of the layers.
      variables: flat, those to begin with; drawn from the seed if None.
    """
    with jax.default_matmul_precision(precision):
        start = experiment(scale, data, dtype=dtype, ops=ops)
        if variables is not None:
            start = with_variables(start, unflattened("variables", variables, start.variables))
        steps = Steps(start, dispatches=1)
        scores, _ = predict.predictor(start)(steps.state, ("test",))
        before = jax.tree.map(np.array, jax.device_get(steps.state.params))  # the step takes the memory of the state
        loss, weight = jax.device_get(steps.take(0)["loss"])
        after = jax.device_get(steps.state.params)
    change = jax.tree.map(np.subtract, after, before)
    return {
        **flattened("variables", jax.device_get(start.variables)),
        **flattened("update", change),
        "logits": scores["test"].logits[:IMAGES],
        "loss": np.float64(loss / weight),
    }


def flattened(name: str, tree) -> dict[str, np.ndarray]:
    """Return the leaves of a tree by name and path."""
    return {name + jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def unflattened(name: str, arrays: dict, like):
    """Return the tree whose `flattened` leaves are among the arrays."""
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[name + jax.tree_util.keystr(path)], like)


def make_reference(scale: Scale, data: str, path: pathlib.Path) -> None:
    """Write what plain float32 gives here, by XLA's own layers."""
    np.savez(path, **computed(scale, data, dtype="float32", precision="highest", ops="xla"))


def read_reference(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def difference(value: np.ndarray, reference: np.ndarray) -> float:
    """Return the largest difference as a share of the reference's largest number; infinity if a value is not finite."""
    value, reference = np.asarray(value, np.float64), np.asarray(reference, np.float64)
    if value.shape != reference.shape or not np.isfinite(value).all():
        return float("inf")
    largest = np.abs(reference).max()
    off = np.abs(value - reference).max()
    return float(off / largest) if largest else float("inf") if off else 0.0


def compared(value: dict, reference: dict, tolerances: tuple[float, float]) -> dict:
    """Compare logits, loss and update with the reference's.

    Args:
      value: of `computed`.
      reference: of `computed`.
      tolerances: of logits and loss; of the norm of the update's difference by the update's norm.

    Returns:
      The largest relative differences, of the update also by parameter, and whether all are within the tolerances.
    """
    names = [name for name in reference if name.startswith("update")]
    by_parameter = {name: difference(value[name], reference[name]) for name in names}
    worst = max(by_parameter, key=by_parameter.get)
    update, wanted = (np.concatenate([np.ravel(each[name]) for name in names]) for each in (value, reference))
    norm = float(np.linalg.norm(update - wanted) / np.linalg.norm(wanted))
    found = {
        "logits": difference(value["logits"], reference["logits"]),
        "loss": difference(value["loss"], reference["loss"]),
        "update": difference(update, wanted),
        "update_norm": norm if np.isfinite(norm) else float("inf"),
        "worst_parameter": {worst: by_parameter[worst]},
    }
    passed = max(found["logits"], found["loss"]) <= tolerances[0] and found["update_norm"] <= tolerances[1]
    return found | {"tolerances": tolerances, "passed": passed}
