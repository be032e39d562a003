"""Digests that tell one data set from another: of labels, images and names, and of the content of files."""

import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from unimix_jax import storage
from unimix_jax.data.types import Source

_SAMPLED = 2048  # images of which the content is read
_HEAD = 2**16  # bytes that are read of each
_BLOCK = 1024  # files whose sizes one thread reads at a time


def digest(source: Source) -> str:
    """Return a digest of a split's labels and images in their order, which identifies a subset.

    For encoded images it covers their names; `content` covers the rest.

    Args:
      source: the split.

    Returns:
      16 hexadecimal digits.
    """
    sha = hashlib.sha256(np.ascontiguousarray(source.labels, np.int32))
    if source.images is None:
        sha.update("\n".join(source.names).encode(errors="surrogateescape"))
    else:
        sha.update(np.ascontiguousarray(source.images))
    return sha.hexdigest()[:16]


def content(source: Source) -> dict | None:
    """Return what tells encoded images from others under the same names.

    It covers the sizes of all files, and the first 64 KiB of up to 2,048 images at equal distances. Modification times
    do not count, because a copy of the data has others. Reading the sizes costs less than one epoch. Records have no
    sizes of their own, so that only the sample covers them. A file that cannot be read counts as empty.

    Args:
      source: the split.

    Returns:
      {"bytes": of all files together, "sizes": digest, "sample": digest}; for records "sample" alone; None for images
      in memory, which `digest` covers.
    """
    if source.images is not None:
        return None
    sampled = np.unique(np.linspace(0, len(source.names) - 1, _SAMPLED).astype(np.int64)).tolist()
    result = {}
    with ThreadPoolExecutor(16) as pool:
        if source.record is None:
            blocks = (source.names[i : i + _BLOCK] for i in range(0, len(source.names), _BLOCK))
            sizes = np.concatenate(list(pool.map(lambda names: _sizes(source.root, names), blocks)))
            result = {"bytes": int(sizes.sum()), "sizes": hashlib.sha256(sizes.astype("<i8")).hexdigest()[:16]}
        sha = hashlib.sha256()
        for head in pool.map(lambda position: _head(source, position), sampled):
            sha.update(hashlib.sha256(head).digest())
    return result | {"sample": sha.hexdigest()[:16]}


def _sizes(root: str, names: tuple[str, ...]) -> np.ndarray:
    """Return the sizes of files in bytes, int64[N]; 0 for anything but a regular file."""
    sizes = np.zeros(len(names), np.int64)
    for i, name in enumerate(names):
        try:
            status = os.stat(os.path.join(root, name))
        except OSError:
            continue
        sizes[i] = status.st_size if stat.S_ISREG(status.st_mode) else 0
    return sizes


def _head(source: Source, position: int) -> bytes:
    """Return the first bytes of an encoded image; none if it cannot be read."""
    if source.record is not None:
        return source.record(position)[:_HEAD]
    try:
        with storage.open_regular(source.path_of(position)) as file:
            return file.read(_HEAD)
    except OSError:
        return b""
