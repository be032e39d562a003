"""Trained weights to start from: a .safetensors file with torchvision's names. Touches files."""

import hashlib
import logging
import os

import jax
import numpy as np

from unimix_jax import storage
from unimix_jax.errors import UserError
from unimix_jax.models import resnet

_log = logging.getLogger(__name__)
_FLOATS = ("F16", "BF16", "F32", "F64")
_LARGEST = 4 * storage.GIB  # bytes of a file; the largest network here has .3 GiB
_LONGEST_NAME = 100


def digest(path: str | os.PathLike) -> str:
    """Return a digest of a file of weights.

    Raises:
      UserError: it cannot be read.
    """
    try:
        with storage.open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise _unreadable(path, error) from None


def begun_from(path: str | os.PathLike, variables: dict) -> dict:
    """Return variables with the values of a file; a head of another size, or kind, stays as it is, aloud.

    Args:
      path: of a .safetensors file; values by PyTorch's names, see `resnet.from_pytorch`.
      variables: {"params", "batch_stats"} of `resnet.initialise`.

    Raises:
      UserError: no such file, or values of another network.
    """
    arrays = _floats(path)
    try:
        given = resnet.from_pytorch(arrays)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"{path} holds names that are not a ResNet's in PyTorch ({error})") from None
    ours, theirs = _by_name(variables), _by_name(given)
    if _head(theirs) != _head(ours):
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
    return jax.tree_util.tree_map_with_path(lambda where, leaf: theirs[_name(where)].astype(leaf.dtype), variables)


def _floats(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Return a file's arrays as float32 by their names, without the counts of batches."""
    from safetensors import SafetensorError, safe_open

    try:
        with storage.open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
        if size > _LARGEST:
            raise UserError(
                f"config.pretrained names {path}, which has {size / storage.GIB:.1f} GiB; at most 4 are read"
            )
        arrays = {}
        with safe_open(path, framework="numpy") as found:
            for name in found.keys():  # noqa: SIM118, it is no dict
                if name.endswith("num_batches_tracked"):
                    continue
                kind, dimensions = found.get_slice(name).get_dtype(), len(found.get_slice(name).get_shape())
                if kind not in _FLOATS:
                    raise UserError(
                        f"config.pretrained names {path}, whose {name[:100]} is of type {kind}; weights must be of "
                        f"{', '.join(_FLOATS)}"
                    )
                if len(name) > _LONGEST_NAME or dimensions > 4:
                    raise UserError(f"{path} holds names or shapes that are not a ResNet's in PyTorch ({name[:100]})")
                with np.errstate(over="ignore"):
                    arrays[name] = np.asarray(found.get_tensor(name), np.float32)
                if not np.isfinite(arrays[name]).all():
                    raise UserError(f"{path} holds nan, infinity or numbers beyond float32 in {name}")
    except OSError as error:
        raise _unreadable(path, error) from None
    # AttributeError, KeyError: a type that numpy has not; OverflowError, MemoryError: shapes that cannot be.
    except (
        SafetensorError, AttributeError, KeyError, MemoryError, OverflowError, TypeError, ValueError
    ) as error:  # fmt: skip
        raise UserError(
            f"config.pretrained names {path}, which is no whole .safetensors file of floats: {error}"
        ) from None
    return arrays


def _unreadable(path, error: OSError) -> UserError:
    return UserError(f"config.pretrained names {path}, which cannot be read: {error.strerror or error}")


def _head(values: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in values.items() if "/head/" in name}


def _name(where) -> str:
    return "/".join(key.key for key in where)


def _by_name(tree: dict) -> dict[str, np.ndarray]:
    return {_name(where): leaf for where, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
