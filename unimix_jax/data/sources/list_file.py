"""List files of images, a path and a label a line, and the files that they name. Touches files.

iNaturalist's JSON files are lists too: `read_all` reads either form.
"""

import logging
import os
import pathlib
import re
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from unimix_jax import storage
from unimix_jax.data import decode
from unimix_jax.data.readers import read_encoded
from unimix_jax.data.sources import inaturalist, listing_checks
from unimix_jax.data.sources.listing import Listing, checked_listing
from unimix_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_log = logging.getLogger(__name__)

_LARGEST = storage.GIB  # bytes of a list
_THREADS = 16  # on a network drive each look takes its time
_PROBED = 50  # files that are looked for to find the image root


def read_all(root: pathlib.Path, data: "ConfigDict") -> tuple[pathlib.Path, dict[str, Listing]]:
    """Read the lists that a config names, and check that their images exist and belong to one split only.

    Args:
      root: the image root, or the folder above or below it.
      data: the group `config.data`, with `train_list`, `validation_list`, `test_list`, `skip_unreadable`.

    Returns:
      The image root, and the listings by split.

    Raises:
      UserError: a list or an image does not exist, a list has another form, or lists contradict each other.
      OSError: a list cannot be read.
    """
    start = time.monotonic()
    listings = {}
    for split in ("train", "validation", "test"):
        if name := data[f"{split}_list"]:
            path = find(name, root, f"config.data.{split}_list")
            listings[split] = inaturalist.read(path) if path.suffix == ".json" else read(path)
    root = _image_root(root, [name for listing in listings.values() for name in listing.names])
    listings = {split: _relative(root, listing) for split, listing in listings.items()}
    names = [name for listing in listings.values() for name in listing.names]
    listing_checks.check_names_apart(listings)
    listing_checks.check_numbering(listings)
    check_existence(root, names)
    _check_formats(root, names, data.skip_unreadable)
    listing_checks.check_contents_apart(root, listings)
    _log.info("%s: %d images listed, all files are there (%.1f s)", root, len(names), time.monotonic() - start)
    return root, listings


def find(name: str, root: pathlib.Path, field: str) -> pathlib.Path:
    """Return the path of a list: the name itself, or a file of that name in the image root or in a folder of it.

    Args:
      name: as the config has it.
      root: the image root.
      field: of the config, for the message.

    Returns:
      The path of an existing file.

    Raises:
      UserError: there is no such file.
    """
    for path in (pathlib.Path(name).expanduser(), root / name, *(below / name for below in sorted(root.glob("*/")))):
        if os.path.isfile(path):
            return path
    raise UserError(f"{field} names {name}, which exists neither there nor in {root} or a folder of it")


def read(path: str | os.PathLike) -> Listing:
    """Read a list file: a path, a space and a label a line; the path may hold spaces.

    Args:
      path: of the list.

    Returns:
      Its images; one that it lists twice with the same label counts once, with a warning.

    Raises:
      UserError: a line has another form, or an image has two labels.
      OSError: the list cannot be read.
    """
    data = storage.read_bytes(path, _LARGEST)
    text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    names, labels = [], []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        parts = line.rsplit(None, 1)
        if len(parts) == 2 and parts[1].isdecimal() and len(parts[1]) < 10:
            names.append(parts[0])
            labels.append(int(parts[1]))
        elif parts:
            raise UserError(
                f"line {number} of {path} is {line[:80]!r}; each line must be a path, a space and a label (0, 1, ...)"
            )
    return checked_listing(path, names, labels, {})


def check_existence(root: pathlib.Path, names: Iterable[str]) -> None:
    """Check that all files exist, by listing each folder once: on a network drive a look at each would take minutes.

    Args:
      root: the image root.
      names: paths below it.

    Raises:
      UserError: files are missing; the message counts them and names the first three.
    """
    folders: dict[str, list[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        folders.setdefault(folder if folder or not name.startswith("/") else "/", []).append(file)

    def missing(folder: str) -> list[str]:
        try:
            present = set(os.listdir(root / folder))
        except OSError:
            present = set()
        return [f"{folder}/{file}" if folder else file for file in folders[folder] if file not in present]

    with ThreadPoolExecutor(_THREADS) as pool:
        lost = [name for part in pool.map(missing, folders) for name in part]
    if lost:
        total = sum(map(len, folders.values()))
        hint = ""
        if re.search(r"\bn\d{8}_\d+\.JPEG|ILSVRC2012", lost[0]):
            hint = "; lists of ImageNet-LT name the files of ILSVRC 2012, as train/n01440764/... and val/n01440764/..."
        raise UserError(
            f"{len(lost)} of {total} listed files are not under {root}, such as {', '.join(lost[:3])}; name the folder "
            f"that holds them by --config.data.dir{hint}"
        )


def _image_root(root: pathlib.Path, names: list[str]) -> pathlib.Path:
    """Return the folder under which the listed files are: the named one, or one level down or up, with a warning."""
    probed = names[:: max(1, len(names) // _PROBED)]

    def hits(folder: pathlib.Path) -> int:
        return sum(os.path.isfile(folder / name) for name in probed)

    if not hits(root):
        below = sorted(path for path in root.glob("*/") if path.is_dir())
        best = max((*below, root.parent), key=hits)
        if hits(best):
            _log.warning("the listed files are not under %s but under %s", root, best)
            return best
    return root


def _relative(root: pathlib.Path, listing: Listing) -> Listing:
    """Make absolute paths below the image root relative to it, so that one image has one name."""
    prefix = f"{root}/"
    return listing._replace(names=[name.removeprefix(prefix) for name in listing.names])


def _check_formats(root: pathlib.Path, names: list[str], go_on: bool) -> None:
    """Refuse files with a suffix of no known format, unless the first of them is an image by its content.

    With `go_on` a warning takes the place of the error.

    Raises:
      UserError: a file has a suffix of no known format.
    """
    unknown: dict[str, list[str]] = {}
    for name in names:
        suffix = os.path.splitext(name)[1].lower()
        if suffix not in decode.suffixes():
            unknown.setdefault(suffix, []).append(name)
    for suffix, files in sorted(unknown.items()):
        try:
            is_image = decode.is_image(read_encoded(root / files[0]))
        except OSError:
            is_image = False
        if not is_image:
            ending = f"end in {suffix}" if suffix else "have no suffix"
            message = (
                f"{len(files)} of the {len(names)} listed files {ending} and are not images of a format that is read, "
                f"such as {files[0]}; the formats are {', '.join(decode.formats())}"
            )
            if not go_on:
                raise UserError(message)
            _log.warning("%s", message)
