"""Checks between the listings of splits: no shared image, and the same numbers for the same classes. Touches files."""

import collections
import contextlib
import functools
import itertools
import logging
import os
import pathlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from unimix_jax import storage
from unimix_jax.data.sources.listing import Listing
from unimix_jax.errors import UserError

_log = logging.getLogger(__name__)

_CLEAR_SHARE = 0.9  # of a folder's training images must have one label for the folder to be the folder of a class
_SHARED = 0.01  # of a split's images may be those of another split before the data is refused
_THREADS = 16  # on a network drive each look takes its time
_PAIRS = 64  # of files that a thread compares at a time
_BLOCK = 2**16  # bytes

LabelsByFolder = dict[str, collections.Counter]  # how many images of each label a folder has


def check_names_apart(listings: Mapping[str, Listing]) -> None:
    """Check that no image is in two lists.

    Args:
      listings: by split.

    Raises:
      UserError: two splits share an image.
    """
    seen: dict[str, set[str]] = {}
    for split, listing in listings.items():
        names = set(listing.names)
        for other, others in seen.items():
            if shared := names & others:
                raise UserError(
                    f"{len(shared)} images are in both the {other} and the {split} list ({min(shared)}); test "
                    "images must not be training images"
                )
        seen[split] = names


def check_contents_apart(root: pathlib.Path, listings: Mapping[str, Listing]) -> None:
    """Check that splits in folders of their own, such as train/ and test/, hold different images under the same names.

    A single shared image gives a warning, because it may stand in for a lost one.

    Args:
      root: the image root.
      listings: by split.

    Raises:
      UserError: two splits share all images of one, or two images and a hundredth of them.
    """
    seen: dict[str, tuple[str, dict[str, str]]] = {}
    for split, listing in listings.items():
        folder = _common_folder(listing.names)
        paths = {name[len(folder) :]: name for name in listing.names}
        for other, (other_folder, other_paths) in seen.items():
            if folder == other_folder:
                continue  # the same name is the same image
            pairs = [(other_paths[name], paths[name]) for name in paths.keys() & other_paths.keys()]
            parts = [pairs[start : start + _PAIRS] for start in range(0, len(pairs), _PAIRS)]
            with ThreadPoolExecutor(_THREADS) as pool:
                same = [pair for part in pool.map(functools.partial(_same_contents, root), parts) for pair in part]
            if same:
                one, two = min(same)
                message = (
                    f"{len(same)} of the {len(paths)} {split} images have the same content and name as {other} images, "
                    f"such as {one} and {two}; test images must not be training images"
                )
                if len(same) == len(paths) or len(same) >= max(2, _SHARED * len(paths)):
                    raise UserError(message)
                _log.warning("%s", message)
        seen[split] = folder, paths


def _common_folder(names: list[str]) -> str:
    """Return the folder that holds all files, as "a/b/"."""
    first, last = min(names).split("/")[:-1], max(names).split("/")[:-1]
    common = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(f"{folder}/" for folder, _ in common)


def _same_contents(root: pathlib.Path, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the pairs of files that hold the same bytes; empty files hold no image."""
    same = []
    for pair in pairs:
        one, two = (os.path.join(root, name) for name in pair)
        with contextlib.suppress(OSError):  # decoding reports what cannot be read
            if (size := os.stat(one).st_size) and size == os.stat(two).st_size and _is_same_content(one, two):
                same.append(pair)
    return same


def _is_same_content(one: str, two: str) -> bool:
    with storage.open_regular(one) as a, storage.open_regular(two) as b:
        while block := a.read(_BLOCK):
            if block != b.read(_BLOCK):
                return False
        return True


def check_numbering(listings: Mapping[str, Listing]) -> None:
    """Check that all lists number the classes alike, by the names of categories and of folders.

    Folders count where they are the folders of classes: nine tenths of a folder's training images have one label, most
    images of that label are in it, and at least half of the classes have such a folder. An evaluation list may differ
    in single images that were relabelled, which gives a warning.

    Args:
      listings: by split, with "train".

    Raises:
      UserError: a list gives a category another name, or a folder another label, than the training list.
    """
    evaluated = {split: listing for split, listing in listings.items() if split != "train"}
    _check_categories(listings["train"], evaluated)
    of_train = _labels_by_folder(listings["train"])
    of_evaluated = {split: _labels_by_folder(listing) for split, listing in evaluated.items()}
    for part in _PARTS:
        label_of = _class_folders(_merged_by_part(of_train, part))
        compared = {
            split: {folder: labels for folder, labels in _merged_by_part(by_folder, part).items() if folder in label_of}
            for split, by_folder in of_evaluated.items()
        }
        if any(compared.values()):
            for split, by_folder in compared.items():
                _check_labels(split, by_folder, label_of)
            return


def _check_categories(train: Listing, evaluated: Mapping[str, Listing]) -> None:
    for split, listing in evaluated.items():
        for label in sorted(train.class_names.keys() & listing.class_names.keys()):
            if (name := train.class_names[label]) != (other := listing.class_names[label]):
                raise UserError(
                    f"the category {label} is {name!r} in the training list and {other!r} in the {split} list; both "
                    "must number the classes alike"
                )


def _check_labels(split: str, by_folder: LabelsByFolder, label_of: dict[str, int]) -> None:
    """Refuse a list in which most images of a folder have another label than in training; warn of single images."""
    for folder, labels in by_folder.items():
        label, count = labels.most_common(1)[0]
        if label != label_of[folder] and count > labels[label_of[folder]]:
            raise UserError(
                f"the images in folders called {folder!r} have the label {label_of[folder]} in the training "
                f"list and {label} in the {split} list ({count} of {labels.total()}); both must number the "
                "classes alike"
            )
    differing = sum(labels.total() - labels[label_of[folder]] for folder, labels in by_folder.items())
    if differing:
        _log.warning(
            "%d images of the %s list have another label than the training images in folders of the same name",
            differing,
            split,
        )


def _last_folders(depth: int, folder: str) -> str:
    """Return the end of a folder's path: one folder is enough for train/n01440764, a/outdoor needs two."""
    return "/".join(folder.split("/")[-depth:])


def _folder_at(index: int, folder: str) -> str:
    """Return one folder of a path, counted from the front, as of train/ant/part0; "" if the path is shorter."""
    return next(iter(folder.split("/")[index : index + 1]), "")


# The lists are compared by the first of these parts of a path that names classes which evaluation lists have too.
_PARTS: tuple[Callable[[str], str], ...] = (
    *(functools.partial(_last_folders, depth) for depth in (1, 2, 3)),
    *(functools.partial(_folder_at, index) for index in (0, 1, 2)),
)


def _labels_by_folder(listing: Listing) -> LabelsByFolder:
    """Count the labels of the images in each folder, by its path."""
    by_folder: LabelsByFolder = {}
    folders = (name.rpartition("/")[0] for name in listing.names)
    for (folder, label), count in collections.Counter(zip(folders, listing.labels.tolist(), strict=True)).items():
        by_folder.setdefault(folder, collections.Counter())[label] = count
    return by_folder


def _merged_by_part(by_folder: LabelsByFolder, part: Callable[[str], str]) -> LabelsByFolder:
    """Add up the counts of folders that share a part of the path; leave out folders without it."""
    merged: LabelsByFolder = {}
    for folder, labels in by_folder.items():
        if name := part(folder):
            merged.setdefault(name, collections.Counter()).update(labels)
    return merged


def _class_folders(by_folder: LabelsByFolder) -> dict[str, int]:
    """Return the label of each folder of a class; {} if fewer than two folders, or than half of the classes, are."""
    totals: collections.Counter = collections.Counter()
    for labels in by_folder.values():
        totals.update(labels)
    label_of = {}
    for folder, labels in by_folder.items():
        label, count = labels.most_common(1)[0]
        if count >= _CLEAR_SHARE * labels.total() and 2 * count > totals[label]:
            label_of[folder] = label
    return label_of if len(label_of) >= max(2, len(totals) / 2) else {}
