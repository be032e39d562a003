"""Pretrained weights: a .safetensors file with PyTorch's names. Touches files."""

import hashlib
import logging
import os

import flax.linen as nn
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


def load(path: str | os.PathLike, network: nn.Module, variables: dict) -> dict:
    """Return variables with the values of a file; a head of another size or kind stays as it is, and the log says so.

    Args:
      path: of a .safetensors file whose values have PyTorch's names.
      network: whose class converts these names, see `models.networks`.
      variables: {"params", "batch_stats"} of `init.initialise`.

    Returns:
      The same tree with other values.

    Raises:
      UserError: the network reads no weights; the file cannot be read, or holds the weights of another network.
    """
    kind = type(network).__name__
    if not hasattr(network, "from_torch"):
        raise UserError(f"config.pretrained names {path}, but {kind} reads no weights: it has no function from_torch")
    arrays = _read_floats(path)
    try:
        loaded = network.from_torch(arrays, variables)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} holds names or shapes that {kind} does not have in PyTorch ({error})") from None
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
        raise UserError(f"{path} holds names or shapes that no network has in PyTorch ({name[:100]})")
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
