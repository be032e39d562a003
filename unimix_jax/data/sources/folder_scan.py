"""All files below a folder: which are images, and what the others are. Touches files."""

import collections
import os
import pathlib
import re
from typing import NamedTuple

from unimix_jax import storage
from unimix_jax.data import decode
from unimix_jax.errors import UserError

# Files that often lie beside photographs and are none: messages count them, but no class is smaller for them.
_NEVER_IMAGES = re.compile(
    r"\.(txt|md|rst|rtf|log|html?|url|lnk|webloc|jsonl?|xml|[ct]sv|ya?ml|ini|cfg|conf|toml|properties|"
    "db|db3|sqlite3?|bak|xmp|aae|thm|identifier|md5|sha\\d+|crc|sfv|sig|asc|par2|torrent|"
    "pdf|docx?|xlsx?|pptx?|od[tsp]|tex|bib|epub|zip|tar|t?gz|bz2|xz|zst|7z|rar|"
    "mat|np[yz]|pkl|pickle|h5|hdf5|parquet|arrow|feather|tfrecords?|lmdb|mdb|"
    "mp[34]|avi|mov|mkv|webm|mpe?g|m4[av]|wmv|flv|3gp|wav|flac|ogg|aac|srt|vtt|"
    "pth?|ckpt|onnx|safetensors|pb|tflite|keras|caffemodel|weights|msgpack|joblib|"
    "pyc?|ipynb|sh|bat|ps1|m|r|jl|c|h|cc|cpp|cu|java|js|css|go|rs|lua|php|exe|dll|so)"
)
# Folders that operating systems and network drives make: images in them are copies, not the user's.
_SYSTEM_FOLDERS = ("@eadir", "__macosx", "$recycle.bin", "system volume information", "lost+found")
_HEAD = 2**16  # bytes, enough for a file's signature and header
_IMAGE, _IGNORED = "an image", "ignored"


class OtherFile(NamedTuple):
    """A file that is not an image."""

    path: str
    kind: str  # in words, after a number of files: ".txt", "that are not regular files"
    may_be_image: bool  # whether a class may lose an image by it, of a format that is not read


class Scan(NamedTuple):
    """The files below a folder, by paths relative to it."""

    images: list[str]  # sorted
    others: list[OtherFile]  # sorted
    real: dict[str, str]  # the path without links of each folder
    unopened: collections.Counter  # folders that are passed over, by name: of systems, and with a leading dot

    @property
    def counts(self) -> collections.Counter:
        """Images in each folder, by its path."""
        return collections.Counter(name.rpartition("/")[0] for name in self.images)


def scan(root: pathlib.Path) -> Scan:
    """List all files below a folder, in sub-folders and behind links.

    Folders with a leading dot, and those that systems make, such as @eaDir and __MACOSX, are passed over.

    Args:
      root: the folder.

    Returns:
      The files.

    Raises:
      UserError: a folder cannot be listed.
    """
    image_paths, others, real = [], [], {"": os.path.realpath(root)}
    unopened: collections.Counter = collections.Counter()
    seen: dict[tuple[str, ...], set[str]] = {}  # links may lead back: each folder once below each class
    todo = [("", (real[""],))]
    while todo:
        folder, above = todo.pop()
        for entry in _entries(root / folder):
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir():
                if entry.name.startswith(".") or entry.name.lower() in _SYSTEM_FOLDERS:
                    unopened[entry.name] += 1
                    continue
                path = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(above[-1], entry.name)
                once = seen.setdefault(tuple(name.split("/")[:2]), set())
                if path in once or _holds(path, above):
                    continue
                once.add(path)
                real[name] = path
                todo.append((name, (*above, path)))
                continue
            kind, may_be_image = _kind(entry)
            if kind == _IMAGE:
                image_paths.append(name)
            elif kind != _IGNORED:
                others.append(OtherFile(name, kind, may_be_image))
    return Scan(sorted(image_paths), sorted(others), real, unopened)


def _entries(folder: pathlib.Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as listed:
            return sorted(listed, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"cannot list the folder {folder} ({error.strerror})") from None


def _holds(folder: str, above: tuple[str, ...]) -> bool:
    """Return whether a folder is one of those above it, or holds one of them."""
    return any(other == folder or other.startswith(folder.rstrip(os.sep) + os.sep) for other in above)


def _kind(entry: os.DirEntry) -> tuple[str, bool]:
    """Return `_IMAGE`, `_IGNORED`, or what another file is in words, and whether an image may be lost by it."""
    suffix = os.path.splitext(entry.name.lower())[1]
    if entry.name.startswith("."):  # of a system, or a Mac's notes on a file
        hidden = not entry.name.startswith("._") and entry.name.lower().endswith(tuple(decode.suffixes()))
        return ("with a name that begins with a dot" if hidden else _IGNORED), False
    if not entry.is_file():
        return "that are not regular files", True
    if suffix in decode.suffixes():
        return _IMAGE, False
    if suffix:
        # Windows' streams arrive elsewhere as files of their own: Thumbs.db:encryptable, 1.jpg:Zone.Identifier.
        return suffix, not _NEVER_IMAGES.fullmatch(suffix.partition(":")[0])
    try:
        with storage.open_regular(entry.path) as file:
            head = file.read(_HEAD)
    except OSError:
        return "without a suffix that cannot be read", True
    if decode.is_image(head):
        return _IMAGE, False
    return "without a suffix that are not images", b"\0" in head
