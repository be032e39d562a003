"""Find the sub-folders of a folder that are splits, and check that the others can be classes.

The names of the folders and the number of images in each decide. Files are touched only for a hint in a message.
"""

import collections
import logging
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

from unimix_jax.data.sources.folder_names import SPLITS, UNUSED, is_filler, role
from unimix_jax.data.sources.text import few
from unimix_jax.errors import UserError

_log = logging.getLogger(__name__)


class ImageCounts(NamedTuple):
    """The number of images in a folder."""

    direct: int  # in itself
    nested: dict[str, int]  # by its own sub-folders

    @property
    def total(self) -> int:
        """All images below the folder."""
        return self.direct + sum(self.nested.values())

    @property
    def is_nested(self) -> bool:
        """Whether the images are in sub-folders, except for a few."""
        return sum(self.nested.values()) > 9 * self.direct


def sub_folders(counts: Mapping[str, int], folder: str = "") -> dict[str, ImageCounts]:
    """Return what the sub-folders of a folder hold, those alone that hold images.

    Args:
      counts: images in each folder, by its path.
      folder: the path of the folder, "" for the root.

    Returns:
      {name of the sub-folder: its images}.
    """
    tops: dict[str, ImageCounts] = {}
    prefix = f"{folder}/" if folder else ""
    for path, count in counts.items():
        if not path.startswith(prefix) or not (below := path[len(prefix) :]):
            continue
        top, _, rest = below.partition("/")
        direct, nested = tops.get(top, ImageCounts(0, {}))
        if rest:
            sub = rest.partition("/")[0]
            nested[sub] = nested.get(sub, 0) + count
        tops[top] = ImageCounts(direct if rest else direct + count, nested)
    return tops


def split_folders(root: pathlib.Path, counts: Mapping[str, int]) -> dict[str, str]:
    """Find the splits among the sub-folders of a folder, by their names and by what they hold.

    Args:
      root: the folder, for messages.
      counts: images in each folder below it, by its path.

    Returns:
      {split: path of the folder that has its classes}; {} if the sub-folders are not splits.

    Raises:
      UserError: the sub-folders are called as splits are, but it is unclear which images are of which class.
    """
    tops = sub_folders(counts)
    roles = {name: role(name) for name in tops}
    training = {name: rest for name, (split, rest) in roles.items() if split == "train"}
    # Folders that share the other words of their names belong together, as dogs_train/ and dogs_test/ do.
    for rest in sorted(dict.fromkeys(training.values()), key=len):
        group = {name: split for name, (split, words) in roles.items() if split and words == rest}
        if list(group) == list(training) and tops[next(iter(training))].is_nested:  # train_mini/ and val/
            group |= {name: split for name, (split, words) in roles.items() if split and not words}
        splits = _splits_of(root, group, tops, counts)
        if splits:
            return splits
    named = sorted({split for split, rest in roles.values() if split and not rest} - {UNUSED})
    if len(named) > 1 and all(split for split, _ in roles.values()):
        raise UserError(
            f"{root} has folders for {' and '.join(named)} ({', '.join(sorted(roles))}) and none for training; call "
            "the one to train on train/; if all are classes, set --config.data.layout=classes"
        )
    return {}


def _splits_of(
    root: pathlib.Path, group: dict[str, str], tops: dict[str, ImageCounts], counts: Mapping[str, int]
) -> dict[str, str]:
    """Return the folder of each split; {} if the only one is a class that is called train.

    Args:
      root: the folder, for messages.
      group: {sub-folder: split that its name means}, with one for training at least.
      tops: the images of all sub-folders.
      counts: images in each folder, by its path.

    Raises:
      UserError: the folders of the splits cannot be told.
    """
    folders: dict[str, list[str]] = {}
    for name, split in group.items():
        folders.setdefault(split, []).append(name)
    flat = _flat_splits(group, tops, counts)
    beside = [name for name in tops if name not in group]
    train = folders["train"][0]
    if len(folders) == 1 and (flat or (beside and len(tops[train].nested) < 2)):
        return {}
    if len(folders) == 1 and beside:
        raise UserError(
            f"{root / train} holds folders of images, as a training split does, but {few(beside)} "
            "beside it are not called as its other splits would be; call them val/ and test/, give the folder with "
            f"the classes by --config.data.dir={root / train}, or name list files by "
            "--config.data.train_list; if all are classes, set --config.data.layout=classes"
        )
    twice = next((split for split, names in folders.items() if len(names) > 1 and split != UNUSED), "")
    if twice:
        raise UserError(
            f"{root} has several folders for one split, {' and '.join(f'{x}/' for x in folders[twice])}; keep one, "
            "or name list files by --config.data.train_list, validation_list and test_list; if all are classes, "
            "set --config.data.layout=classes"
        )
    evaluated = [name for name, split in group.items() if split not in ("train", UNUSED) and name not in flat]
    if flat and (group[flat[0]] == "train" or not evaluated):
        raise UserError(_without_classes(root, flat[:1] if group[flat[0]] == "train" else flat, counts))
    for name in flat:  # usual for the test images of a contest, which keeps their labels
        _log.warning(
            "%s holds %d images and no folder for each class: they count as unlabelled and are not used",
            root / name, tops[name].total,
        )  # fmt: skip
        del folders[group[name]]
    used = [split for split in SPLITS if split in folders and split != UNUSED]
    return {split: _folder_of_classes(folders[split][0], counts, split) for split in used}


def _flat_splits(group: dict[str, str], tops: dict[str, ImageCounts], counts: Mapping[str, int]) -> list[str]:
    """Return the folders of splits without a folder for each class, in the order of `SPLITS`."""
    classes = {name for top, split in group.items() if split == "train" for name in tops[top].nested}
    flat = [name for name, split in group.items() if split != UNUSED and _is_flat(name, split, classes, counts)]
    return sorted(flat, key=lambda name: list(SPLITS).index(group[name]))


def _is_flat(folder: str, split: str, classes: set[str], counts: Mapping[str, int]) -> bool:
    """Return whether the images of a split are in its folder itself, or in one test/ or images/ in it.

    `classes` are the sub-folders of the training split: a folder that has the name of one is a class.
    """
    if not sub_folders(counts)[folder].is_nested:
        return True
    inner = _below_fillers(_folder_of_classes(folder, counts, split), counts)
    if len(below := sub_folders(counts, inner)) == 1 and role(only := next(iter(below)))[0] == split:
        inner = f"{inner}/{only}"
    is_class = len(classes) > 1 and inner.rpartition("/")[2] in classes
    return inner != folder and not is_class and not sub_folders(counts, inner)


def _without_classes(root: pathlib.Path, flat: list[str], counts: Mapping[str, int]) -> str:
    """Return the sentence about folders of splits without a folder for each class."""
    first = root / flat[0]
    texts = sorted(path.name for suffix in ("txt", "csv", "json") for path in first.glob(f"*.{suffix}"))
    hint = f" ({texts[0]} in it may name them)" if texts else ""
    as_well = f", nor has {few(flat[1:])}" if flat[1:] else ""
    away = "" if role(flat[0])[0] == "train" else "take away what has no labels, "
    total = sub_folders(counts)[flat[0]].total
    return (
        f"{first} holds {total} images and no folder for each class{as_well}, so it cannot "
        f"be seen to which class they belong{hint}; make a folder for each class in it, {away}or name list files by "
        "--config.data.train_list and test_list, or give only the folder with classes by --config.data.dir; if it "
        "is a class itself, as those beside it are, set --config.data.layout=classes"
    )


def _folder_of_classes(folder: str, counts: Mapping[str, int], split: str) -> str:
    """Return where the classes of a split are: its folder, or the only one in it, as test/test/ or test/images/."""
    tops = sub_folders(counts, folder)
    if (
        len(tops) == 1
        and not counts.get(folder)
        and role(only := next(iter(tops)))[0] == split
        and tops[only].is_nested
    ):
        folder = f"{folder}/{only}"
    inner = _below_fillers(folder, counts)
    return inner if sub_folders(counts, inner) else folder


def _below_fillers(folder: str, counts: Mapping[str, int]) -> str:
    """Return the folder itself, or the images/ in it if all of its images are there."""
    while len(tops := sub_folders(counts, folder)) == 1 and is_filler(only := next(iter(tops))):
        folder = f"{folder}/{only}"
    return folder


def check_classes(path: pathlib.Path, counts: Mapping[str, int], folder: str = "") -> None:
    """Refuse sub-folders that cannot be classes, by what they hold.

    Args:
      path: of the folder, for messages.
      counts: images in each folder, by its path below the root.
      folder: the path of the folder below the root.

    Raises:
      UserError: sub-folders hold folders of the same names, or one holds folders and another images.
    """
    tops = sub_folders(counts, folder)
    nested = {name: h for name, h in tops.items() if h.is_nested}
    prefix = f"{folder}/" if folder else ""
    counts_of: dict[str, dict[str, int]] = {name: {} for name in nested}
    for inner_path, count in counts.items():
        if inner_path.startswith(prefix) and (top := inner_path[len(prefix) :].partition("/")[0]) in nested:
            counts_of[top][inner_path] = count
    within = {top: _below_fillers(f"{prefix}{top}", counts_of[top]) for top in nested}
    inner = {top: {n for n in sub_folders(counts_of[top], w) if not is_filler(n)} for top, w in within.items()}
    one = path / next(iter(within.values()), prefix)[len(prefix) :]
    ways = (
        f"give the folder whose sub-folders are the classes by --config.data.dir={one}, or "
        "call the splits train/, val/ and test/, or name list files by --config.data.train_list and test_list; if "
        f"they are classes, whatever is in them, set --config.data.layout=classes"
    )
    _check_shared_names(path, inner, ways)
    several = {name: h for name, h in nested.items() if len(h.nested) > 1}
    flat = [name for name in tops if name not in nested]
    if several and flat:
        first = next(iter(several))
        raise UserError(
            f"of the sub-folders of {path} some hold images ({few(flat)}) and some only folders of images "
            f"({few(list(several))}: {few([f'{first}/{sub}' for sub in several[first].nested])}), so they cannot all "
            f"be classes; {ways}"
        )
    if nested and len(tops) > 1:
        _log.info("%s: the images of %s are in folders of theirs, of any name", path, few(list(nested)))


def _check_shared_names(path: pathlib.Path, inner: dict[str, set[str]], ways: str) -> None:
    """Refuse sub-folders that hold folders of the same names, by the names in each; `ways` says what to do."""
    times = collections.Counter(name for names in inner.values() for name in names)
    shared = sorted(name for name, count in times.items() if count > 1)
    splits = [name for name in shared if role(name)[0] and not role(name)[1]]
    if splits:
        first = next(top for top, names in inner.items() if splits[0] in names)
        raise UserError(
            f"{path} has its splits inside of its sub-folders ({first}/{splits[0]}, in {times[splits[0]]} of them), "
            f"which would be trained on; put them the other way round ({splits[0]}/{first}), or name list files by "
            "--config.data.train_list and test_list; if they are not splits, set --config.data.layout=classes"
        )
    if len(shared) > 1 or any(2 * len(names.intersection(shared)) >= len(names) > 0 for names in inner.values()):
        holders = [top for top, names in inner.items() if shared[0] in names]
        raise UserError(
            f"the sub-folders {few(holders)} of {path} hold folders of the same names ({few(shared)}), as splits do "
            f"and classes do not; {ways}"
        )
