"""Reading files of images: where data is searched for, and the bytes of one encoded image. Touches files."""

import os
import pathlib

from unimix_jax import storage
from unimix_jax.errors import UserError

_LARGEST_IMAGE = 2**31  # bytes of an encoded image


def search_path(directory: str) -> pathlib.Path:
    """Return the folder in which data is searched for.

    Args:
      directory: `config.data.dir`; "" for $UNIMIX_DATA_DIR, or for ~/data where that is not set.

    Returns:
      The folder, which need not exist.
    """
    return pathlib.Path(directory or os.environ.get("UNIMIX_DATA_DIR") or "~/data").expanduser()


def read_encoded(path: str | os.PathLike) -> bytes:
    """Read an encoded image.

    Args:
      path: of the file.

    Returns:
      The content of the file.

    Raises:
      OSError: the file cannot be read, is not a regular file, or is larger than any image.
    """
    try:
        return storage.read_bytes(path, _LARGEST_IMAGE)
    except UserError as error:
        raise OSError(str(error)) from None
