"""Pretrained weights: ResNets by PyTorch's names, from arrays or a .safetensors file. Touches files."""

import hashlib
import logging
import os

import jax
import numpy as np

from unimix_jax import storage
from unimix_jax.errors import UserError

_log = logging.getLogger(__name__)
_FLOATS = ("F16", "BF16", "F32", "F64")
_MAX_FILE_SIZE = 4 * storage.GIB  # the largest network here has .3 GiB
_MAX_NAME_LENGTH = 100


def digest(path: str | os.PathLike) -> str:
    """Return a digest of a file of weights.

    Args:
      path: of the file.

    Returns:
      16 hexadecimal digits of its SHA-256.

    Raises:
      UserError: the file cannot be read.
    """
    try:
        with storage.open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise UserError(_unreadable(path, error)) from None


def load(path: str | os.PathLike, variables: dict) -> dict:
    """Return variables with the values of a file; a head of another size or kind stays as it is, and the log says so.

    Args:
      path: of a .safetensors file whose values have PyTorch's names, as in `from_pytorch`.
      variables: {"params", "batch_stats"} of `init.initialise`.

    Returns:
      The same tree with other values.

    Raises:
      UserError: the file cannot be read, or holds the weights of another network.
    """
    arrays = _read_floats(path)
    try:
        loaded = from_pytorch(arrays)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"{path} holds names that are not a ResNet's in PyTorch ({error})") from None
    ours, theirs = _by_name(variables), _by_name(loaded)
    if _head_shapes(theirs) != _head_shapes(ours):
        _log.info("%s: its head has another size or kind; the classifier starts anew", path)
        theirs = {name: v for name, v in theirs.items() if "/head/" not in name}
        theirs |= {name: v for name, v in ours.items() if "/head/" in name}
    for name in sorted(ours.keys() | theirs.keys()):
        here, there = (values[name].shape if name in values else "absent" for values in (ours, theirs))
        if here != there:
            raise UserError(
                f"{path} holds the weights of another network: {name} is {there} there and {here} in this one; choose "
                "its network by --config.network"
            )
    _log.info("weights of %s to start from", path)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: theirs[_name(path)].astype(leaf.dtype), variables)


def from_pytorch(arrays: dict[str, np.ndarray]) -> dict:
    """Convert the state of a ResNet in PyTorch to variables of the same network here.

    Args:
      arrays: values by PyTorch's names, such as "layer1.0.conv1.weight" float32[out, in, 3, 3],
        "bn1.running_var", "linear.weight" (LDAM-DRW) or "fc.weight" (torchvision) float32[K, features], or
        [features, K] of a cosine head, which has no bias. `num_batches_tracked` and the prefix "module." are ignored.

    Returns:
      {"params": ..., "batch_stats": ...} of numpy arrays.
    """
    variables = {"params": {}, "batch_stats": {}}
    arrays = {name.removeprefix("module."): value for name, value in arrays.items()}
    cosine = "linear.bias" not in arrays and "fc.bias" not in arrays
    for name, value in arrays.items():
        *modules, last = name.split(".")
        if last == "num_batches_tracked":
            continue
        group = variables["batch_stats" if last.startswith("running") else "params"]
        modules, target, value = _converted(_modules(modules), last, value, cosine)
        for module in modules:
            group = group.setdefault(module, {})
        group[target] = np.ascontiguousarray(value)
    return variables


def _modules(names: list[str]) -> list[str]:
    """Return the names here of PyTorch's nested modules, from the outermost to the innermost."""
    if names[0].startswith("layer"):
        names = [f"{names[0]}_{names[1]}", *names[2:]]
    if names[-2:-1] == ["downsample"]:
        names = [*names[:-2], "downsample_conv" if names[-1] == "0" else "downsample_bn"]
    return ["head", "linear"] if names[0] in ("linear", "fc") else names


def _converted(modules: list[str], last: str, value: np.ndarray, cosine: bool):
    """Return the modules, the name and the value here of one of PyTorch's arrays."""
    if last != "weight":
        return modules, {"running_mean": "mean", "running_var": "var", "bias": "bias"}[last], value
    if modules[-1] == "linear" and cosine:
        return ["head"], "cosine", value
    if value.ndim == 4:
        return [*modules, "conv"], "kernel", value.transpose(2, 3, 1, 0)
    return (modules, "kernel", value.T) if value.ndim == 2 else (modules, "scale", value)


def _read_floats(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Return the arrays of a file as float32 by their names, without `num_batches_tracked`."""
    from safetensors import SafetensorError, safe_open

    arrays = {}
    try:
        with storage.open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
        if size > _MAX_FILE_SIZE:
            raise UserError(
                f"config.pretrained names {path}, which has {size / storage.GIB:.1f} GiB; at most 4 are read"
            )
        with safe_open(path, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118, it is no dict
                if not name.endswith("num_batches_tracked"):
                    arrays[name] = _read_float(path, tensors, name)
    except OSError as error:
        raise UserError(_unreadable(path, error)) from None
    # AttributeError, KeyError: a type that numpy lacks; OverflowError, MemoryError: impossible shapes.
    except (
        SafetensorError, AttributeError, KeyError, MemoryError, OverflowError, TypeError, ValueError
    ) as error:  # fmt: skip
        raise UserError(
            f"config.pretrained names {path}, which is no whole .safetensors file of floats: {error}"
        ) from None
    return arrays


def _read_float(path, tensors, name: str) -> np.ndarray:
    """Return one array of an open .safetensors file as float32."""
    dtype, dimensions = tensors.get_slice(name).get_dtype(), len(tensors.get_slice(name).get_shape())
    if dtype not in _FLOATS:
        raise UserError(
            f"config.pretrained names {path}, whose {name[:100]} is of type {dtype}; weights must be of "
            f"{', '.join(_FLOATS)}"
        )
    if len(name) > _MAX_NAME_LENGTH or dimensions > 4:
        raise UserError(f"{path} holds names or shapes that are not a ResNet's in PyTorch ({name[:100]})")
    with np.errstate(over="ignore"):
        array = np.asarray(tensors.get_tensor(name), np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{path} holds nan, infinity or numbers beyond float32 in {name}")
    return array


def _unreadable(path, error: OSError) -> str:
    return f"config.pretrained names {path}, which cannot be read: {error.strerror or error}"


def _head_shapes(values: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in values.items() if "/head/" in name}


def _name(tree_path) -> str:
    return "/".join(key.key for key in tree_path)


def _by_name(tree: dict) -> dict[str, np.ndarray]:
    return {_name(tree_path): leaf for tree_path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
