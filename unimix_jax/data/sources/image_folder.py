"""A folder of photographs with a sub-folder for each class, or with such folders under train/, val/ and test/.

Touches files: `folder_scan` lists them; only their names are read, and the head of files without a suffix.
"""

import logging
import pathlib

import numpy as np

from unimix_jax.data.sources import folder_checks, folder_layout
from unimix_jax.data.sources.folder_scan import Scan, scan
from unimix_jax.data.sources.listing import Listing
from unimix_jax.errors import UserError

_log = logging.getLogger(__name__)


def read(root: pathlib.Path, *, layout: str = "auto", skip_other_files: bool = False) -> dict[str, Listing]:
    """List the images of a folder.

    Args:
      root: the folder.
      layout: "classes" if its sub-folders are classes although they look like splits; "auto" to decide by their names
        and contents.
      skip_other_files: whether to go on where a class loses a tenth of its files or more, because they are not images
        of a format that is read.

    Returns:
      Listings by split: "train", and "validation" and "test" where they exist; a validation split alone is the test.

    Raises:
      UserError: the folder does not exist, its sub-folders cannot be meant as classes, or a class loses files.
    """
    if not root.is_dir():
        raise UserError(f"config.data.dir is {root}, which is not a folder; it must hold a sub-folder for each class")
    files = scan(root)
    folder_checks.check_names(root, files)
    splits = {} if layout == "classes" else folder_layout.split_folders(root, files.counts)
    if not splits:
        listings = {"train": _classes(root, "", files, layout, skip_other_files)}
    else:
        listings = {
            split: _classes(root, folder, files, layout, skip_other_files, 2 if split == "train" else 1)
            for split, folder in splits.items()
        }
        if "test" not in listings and "validation" in listings:
            splits["test"], listings["test"] = splits.pop("validation"), listings.pop("validation")
        _log.info("%s: %s", root, ", ".join(f"{folder}/ is for {split}" for split, folder in splits.items()))
        folder_checks.check_beside_splits(root, files, splits)
        folder_checks.check_same_names(root, splits, listings)
    return _numbered_alike(listings)


def _numbered_alike(listings: dict[str, Listing]) -> dict[str, Listing]:
    """Give a class the same label in all splits: its rank among the names of all splits."""
    names = sorted({name for listing in listings.values() for name in listing.class_names.values()})
    label_of = {name: label for label, name in enumerate(names)}

    def numbered(listing: Listing) -> Listing:
        table = np.array([label_of[listing.class_names[c]] for c in range(len(listing.class_names))])
        return listing._replace(labels=table[listing.labels], class_names=dict(enumerate(names)))

    return {split: numbered(listing) for split, listing in listings.items()}


def _classes(
    root: pathlib.Path, folder: str, files: Scan, layout: str, skip_other_files: bool, least: int = 2
) -> Listing:
    """List the images of a folder's sub-folders, a class each, sorted by name.

    Args:
      root: of `files`.
      folder: path of the folder below the root.
      files: below the root.
      layout: see `read`.
      skip_other_files: see `read`.
      least: how many classes there must be.

    Returns:
      The listing of the images.

    Raises:
      UserError: there are too few classes, or a class has lost files.
    """
    path = root / folder
    prefix = f"{folder}/" if folder else ""
    if layout == "auto":
        folder_layout.check_classes(path, files.counts, folder)
    members: dict[str, list[str]] = {}
    stray = 0
    for name in files.images:
        if name.startswith(prefix):
            top, _, rest = name[len(prefix) :].partition("/")
            if rest:
                members.setdefault(top, []).append(name)
            else:
                stray += 1
    below = (name[len(prefix) :] for name in files.real if name.startswith(prefix))
    folders = sorted(name for name in below if name and "/" not in name)
    folder_checks.check_lost(path, prefix, members, files, skip_other_files)
    members = {top: _without_repeats(path / top, members[top], files) for top in folders if top in members}
    if len(members) < least:
        only = next(iter(members), None)
        deeper = only and any(name.count("/") > prefix.count("/") + 1 for name in members[only])
        hint = f" (did you mean {path / only}?)" if deeper else ""
        raise UserError(
            f"{path} has {len(members)} sub-folders with images; it must have one for each class, "
            f"{'one' if least == 1 else 'two'} at least{hint}"
        )
    if stray:
        _log.warning("%s: %d images lie in no sub-folder and belong to no class: skipped", path, stray)
    folder_checks.warn_of_empty(path, prefix, [top for top in folders if top not in members], files)
    labels = np.repeat(np.arange(len(members)), [len(names) for names in members.values()])
    return Listing([name for names in members.values() for name in names], labels, dict(enumerate(members)))


def _without_repeats(path: pathlib.Path, names: list[str], files: Scan) -> list[str]:
    """Leave out images that links show twice within a class."""
    first: dict[tuple[str, str], str] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        first.setdefault((files.real[folder], file), name)
    if len(first) < len(names):
        _log.warning("%s: %d images occur twice, through links; each counts once", path, len(names) - len(first))
    return list(first.values())
