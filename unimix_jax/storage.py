"""Files: read what anyone may have made within bounds, write whole or not at all, lock, on every operating system.

A reader here refuses a file with a `UserError` in one sentence, or with the `OSError` of the system.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import pathlib
import stat
from typing import IO, Any, BinaryIO

from unimix_jax.errors import UserError

MIB, GIB = 1 << 20, 1 << 30

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_DEEPEST_JSON = 32  # lists and dicts inside of each other; a config has 5
_LARGEST_INTEGER = 2**64  # a seed lies below


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a regular file for reading bytes; refuse a pipe, a device or a folder before reading it.

    Args:
      path: of the file.

    Returns:
      The open file.

    Raises:
      OSError: the file does not exist, may not be read, is not a regular file, or has a name that no file can have.
    """

    def opened(name, flags):
        _check_regular(path, os.stat(name))  # opening a device can do something to it
        # A pipe that takes the file's place in between must not make us wait for its writer.
        descriptor = os.open(name, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
        try:
            _check_regular(path, os.fstat(descriptor))
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    try:
        return open(path, "rb", opener=opened)
    except ValueError as error:  # a NUL, or what the file system's encoding lacks
        raise OSError(errno.EINVAL, f"it cannot be the name of a file ({error})", repr(os.fspath(path))) from None


def _check_regular(path: str | os.PathLike, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((words for is_kind, words in _KINDS if is_kind(status.st_mode)), "of a special kind")
        raise OSError(errno.EINVAL, f"it is {kind}; it must be a regular file", os.fspath(path))


def read_bytes(path: str | os.PathLike, limit: int) -> bytes:
    """Read a regular file.

    Args:
      path: of the file.
      limit: the largest size in bytes.

    Returns:
      The content.

    Raises:
      UserError: the file is larger.
      OSError: the file does not exist, is not a regular file, or cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = b"" if size > limit else file.read(limit + 1)  # some systems' files say that they have 0 bytes
    if size > limit or len(data) > limit:
        raise UserError(f"{path} has more than {format_bytes(limit)}; a file of this kind has less")
    return data


def read_text(path: str | os.PathLike, limit: int) -> str:
    """Read a regular file of UTF-8 text, with or without a byte order mark.

    Args:
      path: of the file.
      limit: the largest size in bytes.

    Returns:
      The text.

    Raises:
      UserError: the file is not a regular file, is larger, is not text, or cannot be read.
    """
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text in UTF-8") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def read_numbers(path: str | os.PathLike, limit: int) -> list[float] | None:
    """Read a text file of numbers between spaces and line breaks; from # to the end of a line is a comment.

    Args:
      path: of the file.
      limit: the largest size in bytes.

    Returns:
      The numbers in their order; None if no regular file has that path.

    Raises:
      UserError: the file is larger, is not text, cannot be read, or holds a word that is not a number.
    """
    if not os.path.isfile(path):
        return None
    lines = read_text(path, limit).splitlines()
    try:
        return [float(word) for line in lines for word in line.partition("#")[0].split()]
    except ValueError as error:
        raise UserError(f"the numbers in {path} cannot be read: {str(error)[:100]}") from None


def parse_json(text: str | bytes) -> Any:
    """Parse JSON text with finite numbers, integers below 2**64, and lists and dicts up to 32 deep.

    Args:
      text: UTF-8 if it is bytes.

    Returns:
      The value.

    Raises:
      ValueError: the text holds anything else.
    """

    def integer(digits):
        if len(digits) > 21 or abs(value := int(digits)) >= _LARGEST_INTEGER:
            raise ValueError(f"the number {digits[:20]}... is too large")
        return value

    def real(digits):
        if not math.isfinite(value := float(digits)):
            raise ValueError(f"the number {digits[:20]} is not finite")
        return value

    try:
        value = json.loads(text, parse_int=integer, parse_float=real, parse_constant=real)
    except RecursionError:
        raise ValueError(f"lists and dicts are more than {_DEEPEST_JSON} deep") from None
    layer, depth = [value], 0
    while layer := [part for part in layer if isinstance(part, list | dict)]:
        depth += 1
        if depth > _DEEPEST_JSON:
            raise ValueError(f"lists and dicts are more than {_DEEPEST_JSON} deep")
        layer = [inner for part in layer for inner in (part.values() if isinstance(part, dict) else part)]
    return value


def read_json(path: str | os.PathLike, limit: int = 16 * MIB) -> dict | None:
    """Read a file that holds a JSON object.

    Args:
      path: of the file.
      limit: the largest size in bytes.

    Returns:
      The object; None if the file does not exist.

    Raises:
      UserError: the file holds something else, or cannot be read.
    """
    try:
        value = parse_json(read_bytes(path, limit))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); restore it or start in a new --workdir") from None
    if not isinstance(value, dict):
        raise UserError(
            f"{path} is damaged (a {type(value).__name__} instead of an object); restore it or start in a new --workdir"
        )
    return value


_LOCKED_BYTE = 2**30  # under Windows: far behind the content, because nobody else can read a locked byte


def lock(file: IO) -> None:
    """Lock an open file for this process; the lock ends when the file is closed or the process ends.

    The lock is advisory under Unix (`flock`), and covers one byte under Windows.

    Args:
      file: open, with a file descriptor.

    Raises:
      BlockingIOError: another process holds the lock.
      OSError: the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:
        import msvcrt

        position = file.tell()
        file.seek(_LOCKED_BYTE)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(error.errno, error.strerror) from None
        finally:
            file.seek(position)
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
    """Write a file so that a reader, also after a crash, sees either the old content or the new content.

    Args:
      path: of the file; PATH.tmp is written first.
      content: text is written as UTF-8.

    Raises:
      OSError: the file cannot be written; the error names the file.
    """
    # A path may hold bytes that are no text; a report shows them as \udcXX.
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_json(path: pathlib.Path, value: dict) -> None:
    """Write a JSON file by `write_whole`, sorted and indented; refuse numbers that are not finite."""
    write_whole(path, json_text(value))


def json_text(value: dict) -> str:
    """Return sorted, indented JSON; refuse numbers that are not finite."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def unused(path: pathlib.Path) -> pathlib.Path:
    """Return the first of `path`, `path-2`, `path-3`, ... that does not exist."""
    names = [path, *(path.with_name(f"{path.name}-{i}") for i in range(2, 1000))]
    return next(p for p in names if not p.exists())


def read_cached(folder: str | os.PathLike, name: str) -> bytes | None:
    """Return what `write_cached` wrote; None if the file is absent or damaged, or the folder is a URL (gs://...)."""
    if "://" in str(folder):
        return None
    try:
        data = read_bytes(pathlib.Path(folder, name), GIB)
    except (OSError, UserError):
        return None
    return data[32:] if hashlib.sha256(data[32:]).digest() == data[:32] else None


def write_cached(folder: str | os.PathLike, name: str, data: bytes) -> None:
    """Write a file that can be made again, with its digest in front; do nothing if the folder cannot be written to."""
    if "://" in str(folder):
        return
    with contextlib.suppress(OSError):
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        write_whole(pathlib.Path(folder, name), hashlib.sha256(data).digest() + data)


def format_bytes(bytes_: int) -> str:
    """Return a number of bytes as text in a unit of which it has at least one, such as "1.5 GiB"."""
    for unit, words in ((GIB, "GiB"), (MIB, "MiB"), (1 << 10, "KiB")):
        if bytes_ >= unit:
            return f"{bytes_ / unit:.4g} {words}"
    return f"{bytes_} bytes"
