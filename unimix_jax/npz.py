"""Read .npz files that anyone may have made, without pickles and within bounds of size and memory."""

import contextlib
import math
import os
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from unimix_jax.errors import UserError
from unimix_jax.storage import GIB, MIB, format_bytes, open_regular

_DIRECTORY = MIB  # bytes of an .npz file's list of members: some thousands of names
_BLOCK = MIB
# Arrays of more than _FREE may be this many times as large as the compressed file. Deflate reaches 1,032 at most, and
# empty images come near to that; a file that claims to hold more is forged.
_INFLATION = 1100
_FREE = 256 * MIB
_HEADER = 4096  # bytes of an array's header; numpy writes 128 for plain numbers
_LONGEST_AXIS = 1 << 48
_AXES = 16
_MOST_NAMES = 10**6
_LONGEST_NAME = 10**4
_PAIR = rb"""\s*(['"])(descr|fortran_order|shape)\1\s*:\s*('[^']*'|"[^"]*"|True|False|\([\d\s,L]*\))\s*(,|(?=\}))"""
_ITEM = re.compile(_PAIR)
_TYPE = re.compile(r"[<>|=]?([biufcSU])(\d{1,9})")


def read_arrays(
    path: str | os.PathLike, names: tuple[str, ...] | None = None, limit: int = 8 * GIB
) -> dict[str, np.ndarray]:
    """Read arrays of numbers, booleans and text from an .npz file.

    The size that an array declares is compared with the size of its member in the archive, and with the limit, before
    memory is taken. numpy's own reader evaluates the header as Python and takes any size.

    Args:
      path: of a file that numpy.savez or numpy.savez_compressed wrote.
      names: the arrays to read, if they are there; None for all.
      limit: the largest size of these arrays together, in bytes.

    Returns:
      The arrays by name.

    Raises:
      UserError: the file does not exist, is not a whole .npz file, holds pickled objects, or exceeds the limit.
    """
    with _archive(path) as (archive, file_size):
        return _members(path, archive, names, limit, file_size)


def array_names(path: str | os.PathLike) -> tuple[str, ...]:
    """Return the names of the arrays in an .npz file without reading the arrays.

    Args:
      path: of the file.

    Returns:
      The names, in the order of the file.

    Raises:
      UserError: the file does not exist, or is not a whole .npz file.
    """
    with _archive(path) as (archive, _):
        return tuple(_by_name(archive))


@contextlib.contextmanager
def _archive(path: str | os.PathLike) -> Iterator[tuple[zipfile.ZipFile, int]]:
    """Open an .npz file and yield the archive and the size of the file in bytes."""
    try:
        with open_regular(path) as file:
            if file.read(6) == b"\x93NUMPY":
                raise UserError(f"{path} holds one array without a name; numpy.savez writes an .npz with named ones")
            with zipfile.ZipFile(_SmallReads(file)) as archive:
                yield archive, os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, NotImplementedError, OverflowError, struct.error, EOFError, zipfile.BadZipFile):
        raise UserError(f"{path} is no .npz file of arrays, or is cut short; numpy.savez writes one") from None


class _SmallReads:
    """A file that refuses large reads, because `zipfile` reads as much as an archive says."""

    def __init__(self, file: BinaryIO):
        self.seek, self.tell, self.seekable, self._file = file.seek, file.tell, file.seekable, file

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(_DIRECTORY + 1 if size < 0 else min(size, _DIRECTORY + 1))
        if len(data) > _DIRECTORY:
            raise zipfile.BadZipFile("more than an archive of arrays needs")
        return data


def _by_name(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    return {info.filename.removesuffix(".npy"): info for info in archive.infolist()}


def _members(
    path, archive: zipfile.ZipFile, names: tuple[str, ...] | None, limit: int, file_size: int
) -> dict[str, np.ndarray]:
    members = _by_name(archive)
    arrays, total = {}, 0
    for name in members if names is None else (name for name in names if name in members):
        info = members[name]
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{path}: array {name!r} is compressed in a way that numpy.savez_compressed does not use")
        total += info.file_size
        if total > limit:
            raise UserError(
                f"{path}: with array {name!r} it holds {format_bytes(total)}; at most {format_bytes(limit)} are read"
            )
        if total > max(_FREE, _INFLATION * file_size):
            raise UserError(
                f"{path}: with array {name!r} it holds {format_bytes(total)} in a file of "
                f"{format_bytes(file_size)}, which is more than can be believed; write it by numpy.savez, uncompressed"
            )
        try:
            with archive.open(info) as member:
                arrays[name] = _array(path, name, member, info.file_size)
        # RuntimeError: the archive is encrypted; the others come from damaged archives.
        except (
            OSError, EOFError, MemoryError, RuntimeError, ValueError, OverflowError, struct.error, zlib.error,
            zipfile.BadZipFile,
        ):  # fmt: skip
            raise UserError(f"{path} is damaged: its array {name!r} cannot be read") from None
    return arrays


def _array(path, name: str, member: BinaryIO, size: int) -> np.ndarray:
    """Read one member in numpy's format, of `size` bytes."""
    start = member.read(8)
    if start[:6] != b"\x93NUMPY":
        raise UserError(f"{path} holds {name!r}, but not as an array; numpy.savez writes arrays")
    if start[6:] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise UserError(f"{path}: array {name!r} has a version of numpy's format that is not known")
    length_bytes = 2 if start[6] == 1 else 4
    length = int.from_bytes(member.read(length_bytes), "little")
    header = member.read(length) if length <= _HEADER else b""
    fields = _header(header)
    kind = _TYPE.fullmatch(fields.get("descr", ""))
    if (kind is None and "O" in fields.get("descr", "")) or b"'|O'" in header:
        raise UserError(f"{path}: array {name!r} holds pickled objects, which are not loaded; store plain numbers")
    shape = fields.get("shape")
    if kind is None or len(fields) != 3 or len(shape) > _AXES or max(shape, default=0) > _LONGEST_AXIS:
        raise UserError(f"{path}: array {name!r} cannot be read; store plain numbers")
    try:
        dtype = np.dtype(fields["descr"])
    except (TypeError, ValueError, OverflowError):
        raise UserError(
            f"{path}: array {name!r} has the unknown type {fields['descr']!r}; store plain numbers"
        ) from None
    count = math.prod(shape)
    if count * dtype.itemsize != size - 8 - length_bytes - length:
        raise UserError(f"{path} is damaged: its array {name!r} is {dtype}{list(shape)} and does not fill its place")
    data = np.empty(count * dtype.itemsize, np.uint8)
    view, done = memoryview(data), 0
    while done < len(data):
        block = member.read(min(_BLOCK, len(data) - done))
        if not block:
            raise EOFError
        view[done : done + len(block)] = block
        done += len(block)
    if member.read(1):  # the end is reached and the checksum compared
        raise EOFError
    array = data.view(dtype) if dtype.itemsize else np.empty(count, dtype)
    if dtype.kind == "U" and dtype.itemsize and count:
        points = data.view(np.dtype(np.uint32).newbyteorder(dtype.byteorder))
        if points.max() > sys.maxunicode:
            raise ValueError("no text")
    return array.reshape(shape[::-1]).T if fields["fortran_order"] else array.reshape(shape)


def names_of(array: np.ndarray, what: str) -> tuple[str, ...]:
    """Return the elements of an array as text.

    Args:
      array: of text, bytes or numbers.
      what: the names, for the sentence of an error.

    Returns:
      The elements in C order.

    Raises:
      UserError: there are more names, or longer ones, than any data set has.
    """
    longest = array.dtype.itemsize // (4 if array.dtype.kind == "U" else 1)
    if array.size > _MOST_NAMES or longest > _LONGEST_NAME:
        raise UserError(
            f"{what} are {array.size} of up to {longest} characters; at most {_MOST_NAMES} of up to {_LONGEST_NAME} "
            "are read"
        )
    return tuple(
        name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in array.ravel().tolist()
    )


def _header(text: bytes) -> dict[str, Any]:
    """Return descr, fortran_order and shape of a header that numpy writes for plain types; {} for any other header."""
    text = text.strip()
    if not (text.startswith(b"{") and text.endswith(b"}")):
        return {}
    fields, at = {}, 1
    while match := _ITEM.match(text, at):
        key, value, at = match[2].decode(), match[3].decode("latin-1"), match.end()
        if key == "descr" and value[0] in "'\"":
            fields[key] = value[1:-1]
        elif key == "fortran_order" and value in ("True", "False"):
            fields[key] = value == "True"
        elif key == "shape" and value[0] == "(":
            parts = [part.strip().removesuffix("L") for part in value[1:-1].split(",")]
            if not all(part.isdecimal() and len(part) < 19 for part in parts if part):
                return {}
            fields[key] = tuple(int(part) for part in parts if part)
        else:
            return {}
    return fields if text[at:].strip() == b"}" else {}
