"""A listing of images: their paths, their labels, and the names of classes. Lists and folders give one for each split.

numpy only; touches no files.
"""

import logging
import os
import posixpath
from typing import NamedTuple

import numpy as np

from unimix_jax.errors import UserError

_log = logging.getLogger(__name__)
_MOST_LABELS = 10**7


class Listing(NamedTuple):
    """The images of one split."""

    names: list[str]  # paths below the image root
    labels: np.ndarray  # int64[N]
    class_names: dict[int, str]  # by label, where the list has names


def checked_listing(
    path: str | os.PathLike, names: list[str], labels: list[int], class_names: dict[int, str]
) -> Listing:
    """Return the listing of a file's content; an image that it lists twice counts once, with a warning.

    Args:
      path: of the file, for messages.
      names: of the images, below the image root.
      labels: as many.
      class_names: by label, for some labels or none.

    Returns:
      The listing, its paths normalised.

    Raises:
      UserError: there is no image, a label or a name is impossible, or an image has two labels.
    """
    if not names:
        raise UserError(f"{path} lists no image; each line must be a path, a space and a label (0, 1, ...)")
    if min(labels) < 0 or max(labels) >= _MOST_LABELS:
        wrong = str(min(labels) if min(labels) < 0 else max(labels))
        shown = wrong if len(wrong) < 40 else f"{wrong[:20]}... of {len(wrong)} digits"
        raise UserError(f"{path} holds the label {shown}; labels lie in 0..{_MOST_LABELS - 1}")
    for name in names:
        if "\n" in name or "\r" in name or not is_text(name):
            raise UserError(
                f"{path} names the image {name[:80]!r}; a path may hold no line break, for lists of images have one a "
                "line, and no NUL or half characters"
            )
    names = [posixpath.normpath(name) if "./" in name or "//" in name else name for name in names]
    label_array = np.array(labels, np.int64)
    if len(set(names)) < len(names):
        first: dict[str, int] = {}  # the position of each name
        for i, (name, label) in enumerate(zip(names, labels, strict=True)):
            before = first.setdefault(name, i)
            if labels[before] != label:
                raise UserError(f"{path} gives the image {name} two labels, {labels[before]} and {label}")
        _log.warning("%s lists %d images more than once; each counts once", path, len(names) - len(first))
        names, label_array = list(first), label_array[list(first.values())]
    return Listing(names, label_array, class_names)


def is_text(name: str) -> bool:
    """Return whether a name can be a path and can be written into a file: it has no NUL and no half characters.

    Args:
      name: of an image or a class; surrogates stand for bytes that are not UTF-8.
    """
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return "\0" not in name


def classes_of(listings: dict[str, Listing]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the labels that stand for classes 0, 1, ..., and the names of the classes.

    Labels with gaps are renumbered in their order, with a warning. The names are those of the lists. Without any, they
    are the names of the folders of the training images, where each class has one folder of its own, and otherwise the
    labels.

    Args:
      listings: by split, with "train".

    Returns:
      int64[K], ascending, and K names.
    """
    counts = [np.bincount(listing.labels) for listing in listings.values()]
    length = max(map(len, counts))
    classes = np.flatnonzero(sum(np.pad(c, (0, length - len(c))) for c in counts))
    if len(classes) < length:
        absent = np.setdiff1d(np.arange(length), classes)
        shown = ", ".join(map(str, absent[:3])) + (", ..." if len(absent) > 3 else "")
        _log.warning("no image has the label %s: the %d others are renumbered in their order", shown, len(classes))
    names = {label: name for listing in listings.values() for label, name in listing.class_names.items()}
    if not names:
        names = _folder_names(listings["train"])
    texts = [names.get(label, str(label)) for label in classes.tolist()]
    if len(set(texts)) < len(texts):  # two categories of one name
        texts = [f"{text} ({label})" for text, label in zip(texts, classes.tolist(), strict=True)]
    return classes, tuple(texts)


def _folder_names(train: Listing) -> dict[int, str]:
    """Return the name of each label's folder; {} unless each label has one folder and each folder one label."""
    folders = (name.rpartition("/")[0].rpartition("/")[2] for name in train.names)
    pairs = set(zip(train.labels.tolist(), folders, strict=True))
    if len(pairs) == len({label for label, _ in pairs}) == len({folder for _, folder in pairs}):
        return dict(pairs)
    return {}
