"""PyTorch's arrays as Flax holds them, for the networks' `from_torch`."""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from flax import traverse_util


def renamed(name: str, rules: Sequence[tuple[str, str]]) -> str:
    """Return a name after all replacements.

    Args:
      name: PyTorch's, such as "blocks.0.norm1.weight".
      rules: pairs of a regular expression and its replacement, applied in turn.

    Returns:
      The new name.
    """
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def leaf(name: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    """Return Flax's name and layout of a parameter of a convolution, a linear layer or a normalisation.

    Args:
      name: "weight" or "bias".
      value: float32[out, in, h, w] of a convolution, [out, in] of a linear layer, [features] of a normalisation.

    Returns:
      "kernel", "scale" or "bias", and the array: [h, w, in, out], [in, out] or [features].

    Raises:
      KeyError: these layers have no parameter of that name.
    """
    if name not in ("weight", "bias"):
        raise KeyError(name)
    if name == "bias" or value.ndim == 1:
        return {"weight": "scale", "bias": "bias"}[name], value
    return "kernel", value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def tree(leaves: Iterable[tuple[Sequence[str], np.ndarray]]) -> dict:
    """Return arrays as a nested dictionary.

    Args:
      leaves: pairs of a path and an array.

    Returns:
      Dictionaries of dictionaries of contiguous arrays.

    Raises:
      KeyError: two arrays have one path.
    """
    by_path = {}
    for path, value in leaves:
        if tuple(path) in by_path:
            raise KeyError(f"{'/'.join(path)} twice")
        by_path[tuple(path)] = np.ascontiguousarray(value)
    return traverse_util.unflatten_dict(by_path)
