"""Photographs in files: list files, iNaturalist's JSON, a folder a class, prepared TFDS data. Touches files.

Only names and labels are read here; `images` reads a photograph when its turn comes.
"""

import collections
import contextlib
import functools
import itertools
import json
import logging
import os
import pathlib
import posixpath
import re
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from unimix_jax import storage
from unimix_jax.data import decode
from unimix_jax.data.sources import image_folder, tfds
from unimix_jax.data.sources.image_folder import Listing
from unimix_jax.data.types import (
    Source,
    Splits,
    long_tailed_of_skewed,
    read_regular,
    search_path,
    stratified,
)
from unimix_jax.errors import UserError

_log = logging.getLogger(__name__)

FIELDS = ("dir", "train_list", "validation_list", "test_list", "test_share", "validation_share", "mean", "std")
FIELDS += ("layout", "skip_other_files", "skip_unreadable")
_MOST_LABELS = 10**7
_CLEAR_SHARE = 0.9  # of a folder's training images have the label that the folder is taken to name
_SAME_SHARE = 0.01  # of a split's images may be those of another split before it is refused
_MOST_BYTES = storage.GIB  # of a list; iNaturalist's largest has 120 MB


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
    elif tfds.is_prepared(root):
        return _splits(tfds.read(root, np.float32(data.mean), np.float32(data.std)), data)
    else:
        listings = image_folder.read(root, layout=data.layout, skip_other_files=data.skip_other_files)
        _check_contents_apart(root, listings)
    classes, names = _classes(listings)
    mean, std = np.float32(data.mean), np.float32(data.std)
    parts = {}
    for split, listing in listings.items():
        labels = np.searchsorted(classes, listing.labels).astype(np.int32)
        parts[split] = Source(labels, names, mean, std, names=tuple(listing.names), root=str(root))
    return _splits(parts, data)


def _splits(parts: dict[str, Source], data) -> Splits:
    """Put splits together: what is not given is held out, and a long-tailed cut is made where one is asked for."""
    train, held_out = parts["train"], ""
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
        held_out = ", ".join(f"{len(at[name])} images for {name}" for name in shares) + ", by chance"
    if data.imbalance != 1:
        chosen = long_tailed_of_skewed(parts["train"].labels, classes, data)
        parts["train"] = parts["train"].take(chosen)
    return Splits(parts["train"], parts.get("validation"), parts["test"], held_out)


def _listed(root: pathlib.Path, data) -> tuple[pathlib.Path, dict[str, Listing]]:
    """Read the list files that a config names; return the image root and the listings."""
    begun = time.monotonic()
    listings = {}
    for split in ("train", "validation", "test"):
        if name := data[f"{split}_list"]:
            path = _find_list(name, root, f"config.data.{split}_list")
            listings[split] = read_json(path) if path.suffix == ".json" else read_list(path)
    root = _image_root(root, [name for listing in listings.values() for name in listing.names])
    listings = {split: _below(root, listing) for split, listing in listings.items()}
    everything = [name for listing in listings.values() for name in listing.names]
    _check_apart(listings)
    _check_numbering(listings)
    check_files(root, everything)
    _check_formats(root, everything, data.skip_unreadable)
    _check_contents_apart(root, listings)
    _log.info("%s: %d images listed, all files are there (%.1f s)", root, len(everything), time.monotonic() - begun)
    return root, listings


def _find_list(name: str, root: pathlib.Path, field: str) -> pathlib.Path:
    """Return a list file: as given, else in the image root, else in a folder of it."""
    for path in (pathlib.Path(name).expanduser(), root / name, *(below / name for below in sorted(root.glob("*/")))):
        if os.path.isfile(path):
            return path
    raise UserError(f"{field} names {name}, which is neither there nor in {root} or a folder of it")


def read_list(path: str | os.PathLike) -> Listing:
    """Read a list file: a path, a space and a label a line; the path may hold spaces.

    The same image with the same label twice counts once, aloud.

    Raises:
      UserError: the line that is wrong, or two labels of one image.
    """
    data = storage.read_bytes(path, _MOST_BYTES)
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
    return _checked(path, names, labels, {})


def read_json(path: str | os.PathLike) -> Listing:
    """Read a JSON file as iNaturalist has them: images, annotations, categories.

    Raises:
      UserError: it is no such file.
    """
    data = storage.read_bytes(path, _MOST_BYTES)
    try:
        content = json.loads(data)
        files = {image["id"]: os.fspath(image["file_name"]) for image in content["images"]}
        if len(files) < len(content["images"]):
            raise ValueError("images share an id")
        names = [files[a["image_id"]] for a in content["annotations"]]
        labels = [_label(a["category_id"]) for a in content["annotations"]]
        class_names = {_label(c["id"]): str(c.get("name", c["id"])) for c in content.get("categories", ())}
        if len(class_names) < len(content.get("categories", ())):
            raise ValueError("categories share an id")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is no JSON like iNaturalist's, with images, annotations and categories ({type(error).__name__}: "
            f"{str(error)[:200]})"
        ) from None
    if unsaid := [name for name in class_names.values() if not _is_text(name)]:
        raise UserError(f"{path} names a category {unsaid[0]!r}, which is no text")
    return _checked(path, names, labels, class_names)


def _label(value) -> int:
    """Return a category's id, which is a whole number, or its digits."""
    if type(value) is int or (isinstance(value, str) and value.isdecimal()):
        return int(value)
    raise ValueError(f"the category id {str(value)[:40]!r} is no whole number")


def _is_text(name: str) -> bool:
    """Return whether a name can be a path or be written into a file: without half characters and NUL."""
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return "\0" not in name


def _checked(path, names: list[str], found: list[int], class_names: dict[int, str]) -> Listing:
    if not names:
        raise UserError(f"{path} lists no image; each line must be a path, a space and a label (0, 1, ...)")
    if min(found) < 0 or max(found) >= _MOST_LABELS:
        wrong = str(min(found) if min(found) < 0 else max(found))
        shown = wrong if len(wrong) < 40 else f"{wrong[:20]}... of {len(wrong)} digits"
        raise UserError(f"{path} holds the label {shown}; labels lie in 0..{_MOST_LABELS - 1}")
    for name in names:
        if "\n" in name or "\r" in name or not _is_text(name):
            raise UserError(
                f"{path} names the image {name[:80]!r}; a path may hold no line break, for lists of images have one a "
                "line, and no NUL or half characters"
            )
    names = [posixpath.normpath(name) if "./" in name or "//" in name else name for name in names]
    labels = np.array(found, np.int64)
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


def _check_numbering(listings: dict[str, Listing]) -> None:
    """Refuse lists that give classes other labels than the training list, by names of categories or of folders.

    Folders count where they are the classes' names: where nine tenths of a folder's training images have one label,
    most images of that label are in it, and it is so for half of the classes at least. An evaluation list may disagree
    in single images, where they were labelled anew; that is said.
    """
    train = listings["train"]
    others = {split: listing for split, listing in listings.items() if split != "train"}
    for split, listing in others.items():
        for label in sorted(train.class_names.keys() & listing.class_names.keys()):
            if (here := train.class_names[label]) != (there := listing.class_names[label]):
                raise UserError(
                    f"the category {label} is {here!r} in the training list and {there!r} in the {split} list; both "
                    "must number the classes alike"
                )
    of_train = _labels_by_folder(train)
    of_others = {split: _labels_by_folder(listing) for split, listing in others.items()}
    for part in _FOLDERS:
        label_of = _folders_of_classes(_by_part(of_train, part))
        counts = {
            split: {folder: labels for folder, labels in _by_part(found, part).items() if folder in label_of}
            for split, found in of_others.items()
        }
        if not any(counts.values()):
            continue
        for split, pairs in counts.items():
            for folder, labels in pairs.items():
                label, count = labels.most_common(1)[0]
                if label != label_of[folder] and count > labels[label_of[folder]]:
                    raise UserError(
                        f"the images in folders called {folder!r} have the label {label_of[folder]} in the training "
                        f"list and {label} in the {split} list ({count} of {labels.total()}); both must number the "
                        "classes alike"
                    )
            if strange := sum(labels.total() - labels[label_of[folder]] for folder, labels in pairs.items()):
                _log.warning(
                    "%d images of the %s list have another label than the training images in folders of the same name",
                    strange,
                    split,
                )
        return


def _last_folders(depth: int, folder: str) -> str:
    """Return the end of a folder's path: one is enough for train/n01440764, a/outdoor takes two."""
    return "/".join(folder.split("/")[-depth:])


def _folder_at(place: int, folder: str) -> str:
    """Return one folder of a path, counted from the front, as of train/ant/part0; "" where there is none."""
    return next(iter(folder.split("/")[place : place + 1]), "")


# The first of these parts of a path that shows classes' names, of which the evaluation lists have some, is compared.
_FOLDERS = tuple(functools.partial(_last_folders, depth) for depth in (1, 2, 3))
_FOLDERS += tuple(functools.partial(_folder_at, place) for place in (0, 1, 2))


def _labels_by_folder(listing: Listing) -> dict[str, collections.Counter]:
    """Count the labels of the images in each folder, by its path."""
    found: dict[str, collections.Counter] = {}
    folders_ = (name.rpartition("/")[0] for name in listing.names)
    for (folder, label), count in collections.Counter(zip(folders_, listing.labels.tolist(), strict=True)).items():
        found.setdefault(folder, collections.Counter())[label] = count
    return found


def _by_part(found: dict[str, collections.Counter], part) -> dict[str, collections.Counter]:
    """Add up what is counted in folders of which a part of the path is the same; those without it are left out."""
    sums: dict[str, collections.Counter] = {}
    for folder, labels in found.items():
        if name := part(folder):
            sums.setdefault(name, collections.Counter()).update(labels)
    return sums


def _folders_of_classes(found: dict[str, collections.Counter]) -> dict[str, int]:
    """Return the label of each folder that names a class; {} where fewer than two, or than half of the classes, do."""
    of_label: collections.Counter = collections.Counter()
    for labels in found.values():
        of_label.update(labels)
    label_of = {}
    for folder, labels in found.items():
        label, count = labels.most_common(1)[0]
        if count >= _CLEAR_SHARE * labels.total() and 2 * count > of_label[label]:
            label_of[folder] = label
    return label_of if len(label_of) >= max(2, len(of_label) / 2) else {}


def _below(root: pathlib.Path, listing: Listing) -> Listing:
    """Write absolute paths below the image root as others are, so that one image has one name."""
    begin = f"{root}/"
    return listing._replace(names=[name.removeprefix(begin) for name in listing.names])


def _check_formats(root: pathlib.Path, names: list[str], go_on: bool) -> None:
    """Refuse listed files of a suffix that is not read, unless the first of them is an image by its content."""
    odd: dict[str, list[str]] = {}
    for name in names:
        suffix = os.path.splitext(name)[1].lower()
        if suffix not in decode.suffixes():
            odd.setdefault(suffix, []).append(name)
    for suffix, found in sorted(odd.items()):
        try:
            seen = decode.is_image(read_regular(root / found[0]))
        except OSError:
            seen = False
        if not seen:
            what = f"end in {suffix}" if suffix else "have no suffix"
            message = (
                f"{len(found)} of the {len(names)} listed files {what} and are no images of a format that is read, "
                f"such as {found[0]}; the formats are {', '.join(decode.formats())}"
            )
            if not go_on:
                raise UserError(message)
            _log.warning("%s", message)


def _check_contents_apart(root: pathlib.Path, listings: dict[str, Listing]) -> None:
    """Refuse splits with the same images under the same names in folders of their own, such as train/ and test/."""
    seen: dict[str, tuple[str, dict[str, str]]] = {}
    for split, listing in listings.items():
        folder = _common_folder(listing.names)
        of = {name[len(folder) :]: name for name in listing.names}
        for other, (other_folder, others) in seen.items():
            if folder == other_folder:
                continue  # the same name is the same image
            pairs = [(others[name], of[name]) for name in of.keys() & others.keys()]
            parts = [pairs[start : start + 64] for start in range(0, len(pairs), 64)]
            with ThreadPoolExecutor(16) as pool:  # on a network drive each look takes its time
                same = [pair for found in pool.map(functools.partial(_same_contents, root), parts) for pair in found]
            if same:
                one, two = min(same)
                message = (
                    f"{len(same)} of the {len(of)} {split} images have the same content and name as {other} images, "
                    f"such as {one} and {two}; what is tested must not have been trained on"
                )
                if len(same) == len(of) or len(same) >= max(2, _SAME_SHARE * len(of)):
                    raise UserError(message)
                _log.warning("%s", message)  # a single one may stand in for images that are lost
        seen[split] = folder, of


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
        with contextlib.suppress(OSError):  # what cannot be read is told when its turn comes
            if (size := os.stat(one).st_size) and size == os.stat(two).st_size and _is_same_content(one, two):
                same.append(pair)
    return same


def _is_same_content(one: str, two: str) -> bool:
    with storage.open_regular(one) as a, storage.open_regular(two) as b:
        while block := a.read(2**16):
            if block != b.read(2**16):
                return False
        return True


def _image_root(root: pathlib.Path, names: list[str]) -> pathlib.Path:
    """Return the folder under which the listed files are: the given one, or one level down or up, aloud."""
    some = names[:: max(1, len(names) // 50)]

    def found(folder: pathlib.Path) -> int:
        return sum(os.path.isfile(folder / name) for name in some)

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
