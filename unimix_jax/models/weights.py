"""Trained weights to start from: a .safetensors file with torchvision's names. Touches files."""

import hashlib
import logging
import os
import pathlib

import jax
import numpy as np

from unimix_jax.errors import UserError
from unimix_jax.models import resnet

_log = logging.getLogger(__name__)


def digest(path: str | os.PathLike) -> str:
    """Return a digest of a file of weights.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()[:16]
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
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(path)
    except OSError as error:
        raise _unreadable(path, error) from None
    except (SafetensorError, KeyError, TypeError, ValueError) as error:  # KeyError: a type numpy has not
        raise UserError(f"config.init names {path}, which is no whole .safetensors file of floats: {error}") from None
    try:
        given = resnet.from_pytorch({name: np.asarray(v, np.float32) for name, v in arrays.items()})
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


def _unreadable(path, error: OSError) -> UserError:
    return UserError(f"config.init names {path}, which cannot be read: {error.strerror or error}")


def _head(values: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in values.items() if "/head/" in name}


def _name(where) -> str:
    return "/".join(key.key for key in where)


def _by_name(tree: dict) -> dict[str, np.ndarray]:
    return {_name(where): leaf for where, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
