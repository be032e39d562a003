"""Photographs in files: list files, iNaturalist's JSON, a folder a class, prepared TFDS data. Touches files.

Only names and labels are read here; `images` reads a photograph when its turn comes.
"""

import json
import logging
import os
import pathlib
import posixpath
import re
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from unimix_jax.data import prepared
from unimix_jax.data.splits import Source, Splits, long_tailed_of_skewed, search_path, stratified
from unimix_jax.errors import UserError

_log = logging.getLogger(__name__)

FIELDS = ("dir", "train_list", "validation_list", "test_list", "test_share", "validation_share", "mean", "std")
SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"]
)
_MOST_LABELS = 10**7
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


class Listing(NamedTuple):
    """The images of one split, as its list says."""

    names: list[str]  # paths below the image root
    labels: np.ndarray  # int64[N]
    class_names: dict[int, str]  # by label, where the list has names


def photographs(data) -> Splits:
    """Photographs, from whatever `config.data` names.

    `train_list`, and perhaps `validation_list` and `test_list`: list files ("path label" a line) or iNaturalist's
    JSON, over the image root `dir`. Else `dir` is a prepared TFDS directory, or a folder with a sub-folder a class,
    or one with such folders under train/, val/ and test/. Where there is no test split, it is held out by
    `split_seed`, stratified: `test_share` of each class, and `validation_share` for validation.
    """
    root = search_path(data.dir)
    if data.train_list:
        root, listings = _listed(root, data)
    elif given := [f"{split}_list" for split in ("validation", "test") if data[f"{split}_list"]]:
        raise UserError(f"config.data.{given[0]} goes with config.data.train_list, which is not given")
    elif not data.dir:
        raise UserError(
            "no photographs named: give a folder with a sub-folder a class by --config.data.dir=FOLDER, or list files "
            "by --config.data.train_list=FILE"
        )
    elif prepared.is_prepared(root):
        return _splits(prepared.read(root, np.float32(data.mean), np.float32(data.std)), data)
    else:
        listings = _folders(root)
    classes, names = _classes(listings)
    mean, std = np.float32(data.mean), np.float32(data.std)
    parts = {}
    for split, listing in listings.items():
        labels = np.searchsorted(classes, listing.labels).astype(np.int32)
        parts[split] = Source(labels, names, mean, std, names=tuple(listing.names), root=str(root))
    return _splits(parts, data)


def _splits(parts: dict[str, Source], data) -> Splits:
    """Put splits together: what is not given is held out, and a long-tailed cut is made where one is asked for."""
    train = parts["train"]
    classes = len(train.class_names)
    if "test" not in parts:
        if not data.test_share > 0:
            raise UserError("there is no test split and config.data.test_share is 0; name one or hold some images out")
        shares = {"test": data.test_share}
        if "validation" not in parts:
            shares["validation"] = data.validation_share
        at = stratified(train.labels, classes, shares, data.split_seed)
        if not len(at["test"]):
            raise UserError("no class has images enough to hold one out for the test; name a test split")
        kept = sorted(set(range(classes)) - set(train.labels[at["test"]].tolist()))
        if kept:
            shown = ", ".join(train.class_names[c] for c in kept[:3]) + (", ..." if len(kept) > 3 else "")
            _log.warning("%d classes have too few images to hold one out for the test: %s", len(kept), shown)
        parts = parts | {name: train.take(positions) for name, positions in at.items() if len(positions)}
        _log.info("held out by chance: %s", ", ".join(f"{len(at[name])} images for {name}" for name in shares))
    if data.imbalance != 1:
        chosen = long_tailed_of_skewed(parts["train"].labels, classes, data)
        parts["train"] = parts["train"].take(chosen)
    return Splits(parts["train"], parts.get("validation"), parts["test"])


def _listed(root: pathlib.Path, data) -> tuple[pathlib.Path, dict[str, Listing]]:
    """Read the list files that a config names; return the image root and the listings."""
    begun = time.monotonic()
    listings = {}
    for split in ("train", "validation", "test"):
        if name := data[f"{split}_list"]:
            path = _find_list(name, root, f"config.data.{split}_list")
            listings[split] = read_json(path) if path.suffix == ".json" else read_list(path)
    _check_apart(listings)
    everything = [name for listing in listings.values() for name in listing.names]
    root = _image_root(root, everything)
    check_files(root, everything)
    _log.info("%s: %d images listed, all files are there (%.1f s)", root, len(everything), time.monotonic() - begun)
    return root, listings


def _find_list(name: str, root: pathlib.Path, field: str) -> pathlib.Path:
    """Return a list file: as given, else in the image root, else in a folder of it."""
    for path in (pathlib.Path(name).expanduser(), root / name, *sorted(root.glob(f"*/{name}"))):
        if path.is_file():
            return path
    raise UserError(f"{field} names {name}, which is neither there nor in {root} or a folder of it")


def read_list(path: str | os.PathLike) -> Listing:
    """Read a list file: a path, a space and a label a line; the path may hold spaces.

    The same image with the same label twice counts once, aloud.

    Raises:
      UserError: the line that is wrong, or two labels of one image.
    """
    text = pathlib.Path(path).read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    names, labels = [], []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        parts = line.rsplit(None, 1)
        if len(parts) == 2 and parts[1].isdecimal() and len(parts[1]) < 10:
            name = parts[0]
            names.append(posixpath.normpath(name) if "./" in name or "//" in name else name)
            labels.append(int(parts[1]))
        elif parts:
            raise UserError(
                f"line {number} of {path} is {line[:80]!r}; each line must be a path, a space and a label (0, 1, ...)"
            )
    return _checked(path, names, np.array(labels, np.int64), {})


def read_json(path: str | os.PathLike) -> Listing:
    """Read a JSON file as iNaturalist has them: images, annotations, categories.

    Raises:
      UserError: it is no such file.
    """
    try:
        content = json.loads(pathlib.Path(path).read_bytes())
        files = {image["id"]: os.fspath(image["file_name"]) for image in content["images"]}
        pairs = [(files[a["image_id"]], int(a["category_id"])) for a in content["annotations"]]
        class_names = {int(c["id"]): str(c.get("name", c["id"])) for c in content.get("categories", ())}
        labels = np.array([label for _, label in pairs], np.int64)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{path} is no JSON like iNaturalist's, with images, annotations and categories ({type(error).__name__}: "
            f"{error})"
        ) from None
    return _checked(path, [n for n, _ in pairs], labels, class_names)


def _checked(path, names: list[str], labels: np.ndarray, class_names: dict[int, str]) -> Listing:
    if not names:
        raise UserError(f"{path} lists no image; each line must be a path, a space and a label (0, 1, ...)")
    if labels.min() < 0 or labels.max() >= _MOST_LABELS:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise UserError(f"{path} holds the label {wrong}; labels lie in 0..{_MOST_LABELS - 1}")
    if len(set(names)) < len(names):
        first: dict[str, int] = {}
        for i, (name, label) in enumerate(zip(names, labels.tolist(), strict=True)):
            before = first.setdefault(name, i)
            if labels[before] != label:
                raise UserError(f"{path} gives the image {name} two labels, {labels[before]} and {label}")
        _log.warning("%s lists %d images more than once; each counts once", path, len(names) - len(first))
        names, labels = list(first), labels[list(first.values())]
    return Listing(names, labels, class_names)


def _check_apart(listings: dict[str, Listing]) -> None:
    """Refuse splits that share an image."""
    seen: dict[str, set[str]] = {}
    for split, listing in listings.items():
        names = set(listing.names)
        for other, others in seen.items():
            if shared := names & others:
                raise UserError(
                    f"{len(shared)} images are in both the {other} and the {split} list ({min(shared)}); what is "
                    "tested must not have been trained on"
                )
        seen[split] = names


def _image_root(root: pathlib.Path, names: list[str]) -> pathlib.Path:
    """Return the folder under which the listed files are: the given one, or one level down or up, aloud."""
    some = names[:: max(1, len(names) // 50)]

    def found(folder: pathlib.Path) -> int:
        return sum((folder / name).is_file() for name in some)

    if not found(root):
        below = sorted(path for path in root.glob("*/") if path.is_dir())
        best = max((*below, root.parent), key=found)
        if found(best):
            _log.warning("the listed files are not under %s but under %s", root, best)
            return best
    return root


def check_files(root: pathlib.Path, names: Iterable[str]) -> None:
    """See that all files are there, by listing each folder once: on a network drive a look at each would take minutes.

    Raises:
      UserError: how many are missing, and the first three.
    """
    folders: dict[str, list[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        folders.setdefault(folder if folder or not name.startswith("/") else "/", []).append(file)

    def missing(folder: str) -> list[str]:
        try:
            there = set(os.listdir(root / folder))
        except OSError:
            there = set()
        return [f"{folder}/{file}" if folder else file for file in folders[folder] if file not in there]

    with ThreadPoolExecutor(16) as pool:
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


def _folders(root: pathlib.Path) -> dict[str, Listing]:
    """Read a folder with a sub-folder a class, or train, val and test folders of that kind."""
    if not root.is_dir():
        raise UserError(f"config.data.dir is {root}, which is no folder; it must hold a sub-folder for each class")
    below = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    found = {split: next((n for n in names if n in below), None) for split, names in SPLIT_FOLDERS.items()}
    if not found["train"] or not (found["test"] or found["validation"]):
        return {"train": _class_folders(root, root)}
    if not found["test"]:
        found["test"], found["validation"] = found["validation"], None
    _log.info("%s: %s", root, ", ".join(f"{name}/ is for {split}" for split, name in found.items() if name))
    listings = {split: _class_folders(root, below[name]) for split, name in found.items() if name}
    ids = {name: c for c, name in enumerate(sorted({n for x in listings.values() for n in x.class_names.values()}))}

    def renumbered(listing: Listing) -> Listing:
        table = np.array([ids[listing.class_names[c]] for c in range(len(listing.class_names))])
        return listing._replace(labels=table[listing.labels], class_names={c: name for name, c in ids.items()})

    return {split: renumbered(listing) for split, listing in listings.items()}


def _class_folders(root: pathlib.Path, folder: pathlib.Path) -> Listing:
    """List the images of a folder's sub-folders, a class each, sorted by name; paths are relative to `root`."""
    names, labels, class_names, empty = [], [], {}, []
    for path in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        images = sorted(_images_below(root, path))
        if not images:
            empty.append(path.name)
            continue
        names += images
        labels += [len(class_names)] * len(images)
        class_names[len(class_names)] = path.name
    if len(class_names) < 2:
        only = next(iter(class_names.values()), None)
        hint = (
            f" (did you mean {folder / only}?)" if only and any(p.is_dir() for p in (folder / only).iterdir()) else ""
        )
        raise UserError(
            f"{folder} has {len(class_names)} sub-folders with images; it must have one for each class, two at "
            f"least{hint}"
        )
    if empty:
        _log.warning("no image in %s: no class is made of it", ", ".join(str(folder / name) for name in empty))
    return Listing(names, np.array(labels, np.int64), class_names)


def _images_below(root: pathlib.Path, folder: pathlib.Path) -> Iterable[str]:
    seen = set()  # links may lead back
    for where, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen or os.path.commonpath([real, os.path.realpath(root)]) == real:
            folders[:] = []
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = pathlib.Path(where).relative_to(root).as_posix()
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield f"{below}/{name}"


def _classes(listings: dict[str, Listing]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the labels that stand for classes 0, 1, ..., and the classes' names.

    Labels with gaps are numbered anew, in their order, aloud. Names are the list's own, else those of the folders
    that the training images of a class are in, where each class has one of its own, else the labels.
    """
    counts = [np.bincount(listing.labels) for listing in listings.values()]
    length = max(map(len, counts))
    classes = np.flatnonzero(sum(np.pad(c, (0, length - len(c))) for c in counts))
    if len(classes) < length:
        absent = np.setdiff1d(np.arange(length), classes)
        shown = ", ".join(map(str, absent[:3])) + (", ..." if len(absent) > 3 else "")
        _log.warning("no image has the label %s: the %d others are numbered anew, in their order", shown, len(classes))
    train = listings["train"]
    names = {label: name for listing in listings.values() for label, name in listing.class_names.items()}
    if not names:
        folders = (name.rpartition("/")[0].rpartition("/")[2] for name in train.names)
        pairs = set(zip(train.labels.tolist(), folders, strict=True))
        if len(pairs) == len({label for label, _ in pairs}) == len({folder for _, folder in pairs}):
            names = dict(pairs)
    texts = [names.get(label, str(label)) for label in classes.tolist()]
    if len(set(texts)) < len(texts):  # two categories of one name
        texts = [f"{text} ({label})" for text, label in zip(texts, classes.tolist(), strict=True)]
    return classes, tuple(texts)
