"""Checks of a scanned folder: files and images that are passed over, and classes that are written in two ways.

Touches no files.
"""

import collections
import logging
import pathlib
import unicodedata
from collections.abc import Collection, Mapping

from unimix_jax.data.sources.folder_names import UNUSED, role
from unimix_jax.data.sources.folder_scan import Scan
from unimix_jax.data.sources.listing import Listing
from unimix_jax.data.sources.text import counted, few
from unimix_jax.errors import UserError

_log = logging.getLogger(__name__)

_LOST_SHARE = 0.1  # of a class's files may be images that are not read before the data is refused
_SHOWN = 20  # classes whose files are counted one by one in the log


def check_names(root: pathlib.Path, files: Scan) -> None:
    """Log the folders that are passed over, and refuse names that a list of images cannot hold.

    Args:
      root: the folder, for messages.
      files: in it.

    Raises:
      UserError: the name of an image holds a line break.
    """
    if files.unopened:
        _log.info(
            "%s: %d folders of systems, or with a name that begins with a dot, are skipped: %s",
            root,
            files.unopened.total(),
            few([f"{count} {name}" for name, count in files.unopened.most_common()]),
        )
    if wrong := [name for name in files.images if "\n" in name or "\r" in name]:
        raise UserError(
            f"the name of {len(wrong)} images under {root} holds a line break, such as {wrong[0]!r}; a list of images "
            "has a name a line: rename them"
        )


def check_beside_splits(root: pathlib.Path, files: Scan, splits: Mapping[str, str]) -> None:
    """Warn of images that are in no split, and refuse a folder that is called after a split and has lost all images.

    Args:
      root: the folder, for messages.
      files: in it.
      splits: the folder of each split.

    Raises:
      UserError: a folder of a split holds images of formats that are not read, and no others.
    """
    with_images = {name.partition("/")[0] for name in files.images}
    for top in sorted(name for name in files.real if name and "/" not in name and name not in with_images):
        if role(top)[0] in ("", UNUSED):
            continue
        lost = collections.Counter(f.kind for f in files.others if f.may_be_image and f.path.startswith(f"{top}/"))
        if lost:
            raise UserError(
                f"{root / top} holds no image that is read ({counted(lost)}); convert them to JPEG or PNG, or take "
                "the folder away"
            )
        _log.warning("%s holds no image: no split is made of it", root / top)
    inside = tuple(f"{folder}/" for folder in splits.values())
    beside = collections.Counter(name.partition("/")[0] for name in files.images if not name.startswith(inside))
    if beside:
        shown = few([f"{count} images in {top}" for top, count in beside.items()])
        _log.warning("%s: skipped, because they are in no split: %s", root, shown)


def check_same_names(root: pathlib.Path, splits: Mapping[str, str], listings: Mapping[str, Listing]) -> None:
    """Refuse classes whose names in another split differ from those in training by capital letters alone.

    Args:
      root: the folder, for messages.
      splits: the folder of each split.
      listings: by split, with "train".

    Raises:
      UserError: a name is written in two ways.
    """

    def plain(name):
        return unicodedata.normalize("NFC", name).casefold()

    names = set(listings["train"].class_names.values())
    alike = {plain(name): name for name in sorted(names)}
    for split, listing in listings.items():
        others = [name for name in listing.class_names.values() if name not in names and plain(name) in alike]
        if others:
            raise UserError(
                f"{len(others)} of the classes in {root / splits[split]} are spelled differently than in "
                f"{root / splits['train']}, such as {others[0]!r} and {alike[plain(others[0])]!r}; give the folders "
                "of a class the same name, in capital and small letters alike"
            )


def check_lost(
    path: pathlib.Path, prefix: str, members: Mapping[str, list[str]], files: Scan, skip_other_files: bool
) -> None:
    """Log the files of each class that are passed over, and refuse a class that loses a tenth of its files or more.

    Args:
      path: of the folder of the classes, for messages.
      prefix: of the paths below that folder: "" or "train/".
      members: the images of each class.
      files: below the root.
      skip_other_files: whether to go on where a class loses that many.

    Raises:
      UserError: a class loses a tenth of its files or more.
    """
    others: dict[str, collections.Counter] = {}  # by class
    lost: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for file in files.others:
        top, _, rest = file.path[len(prefix) :].partition("/")
        if file.path.startswith(prefix) and rest:
            others.setdefault(top, collections.Counter())[file.kind] += 1
            lost[top][file.kind] += file.may_be_image
    if not others:
        return
    lost_of = {top: counts.total() for top, counts in lost.items()}
    level = logging.WARNING if any(lost_of.values()) else logging.INFO
    total: collections.Counter = sum(others.values(), collections.Counter())
    message = "%s: %d files are skipped, because they are not images of a format that is read: %s"
    _log.log(level, message, path, total.total(), counted(total))
    ranked = sorted(others, key=lambda top: (-lost_of[top], -others[top].total(), top))
    for top in ranked[:_SHOWN]:
        kept = len(members.get(top, ()))
        _log.log(level, "  class %s: %d images; skipped: %s", top, kept, counted(others[top]))
    if len(ranked) > _SHOWN:
        _log.log(level, "  and in %d more classes", len(ranked) - _SHOWN)
    less = [n for n in ranked if lost_of[n] and lost_of[n] >= _LOST_SHARE * (lost_of[n] + len(members.get(n, ())))]
    if less and not skip_other_files:
        first = less[0]
        more = f"; {len(less) - 1} more of the classes lose a tenth or more of theirs" if len(less) > 1 else ""
        raise UserError(
            f"of the class {first!r} in {path} {len(members.get(first, ()))} files are images that are read and "
            f"{lost_of[first]} are not ({counted(lost[first])}){more}; convert them to JPEG or PNG, take them away, "
            "or go on without them by --config.data.skip_other_files"
        )


def warn_of_empty(path: pathlib.Path, prefix: str, folders: Collection[str], files: Scan) -> None:
    """Log the sub-folders without an image, and what is in them.

    Args:
      path: of the folder of the classes, for messages.
      prefix: of the paths below that folder: "" or "train/".
      folders: its sub-folders without an image.
      files: below the root.
    """
    empty: dict[str, collections.Counter] = {top: collections.Counter() for top in folders}
    for file in files.others:
        if file.path.startswith(prefix) and (top := file.path[len(prefix) :].partition("/")[0]) in empty:
            empty[top][file.kind] += 1
    if empty:
        shown = [f"{path / top} ({counted(kinds)})" if kinds else str(path / top) for top, kinds in empty.items()]
        _log.warning("no image in %s: no class is made of it", few(shown))
