"""A folder of photographs: which of its files are images, which sub-folders are splits, and which are classes.

Touches files: it lists folders, and looks into files without a suffix.
"""

import collections
import logging
import os
import pathlib
import re
import unicodedata
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from unimix_jax import storage
from unimix_jax.data import decode
from unimix_jax.errors import UserError

_log = logging.getLogger(__name__)

_UNUSED = "unlabelled"
_SPLITS = {  # words by which folders are called
    "train": ("train", "training", "trainval", "trn", "learn", "learning"),
    "validation": ("val", "valid", "validation", "validate", "dev", "devel", "development"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "heldout", "holdout"),
    _UNUSED: (
        "unlabelled",
        "unlabeled",
        "unlabel",
        "pred",
        "predict",
        "prediction",
        "predictions",
        "unsupervised",
    ),
}
_FILLERS = re.compile(  # words that say nothing beside those, and names of folders that every class may have
    "(data)?sets?|data|splits?|seg|folders?|dir|images?|imgs?|photos?|pictures?|pics?|jpe?gs?|png|raw|orig(inals?)?"
)
# Files that go with photographs and are none: they are counted and said, but no class is smaller for them.
_BESIDE = re.compile(
    r"\.(txt|md|rst|rtf|log|html?|url|lnk|webloc|jsonl?|xml|[ct]sv|ya?ml|ini|cfg|conf|toml|properties|"
    "db|db3|sqlite3?|bak|xmp|aae|thm|identifier|md5|sha\\d+|crc|sfv|sig|asc|par2|torrent|"
    "pdf|docx?|xlsx?|pptx?|od[tsp]|tex|bib|epub|zip|tar|t?gz|bz2|xz|zst|7z|rar|"
    "mat|np[yz]|pkl|pickle|h5|hdf5|parquet|arrow|feather|tfrecords?|lmdb|mdb|"
    "mp[34]|avi|mov|mkv|webm|mpe?g|m4[av]|wmv|flv|3gp|wav|flac|ogg|aac|srt|vtt|"
    "pth?|ckpt|onnx|safetensors|pb|tflite|keras|caffemodel|weights|msgpack|joblib|"
    "pyc?|ipynb|sh|bat|ps1|m|r|jl|c|h|cc|cpp|cu|java|js|css|go|rs|lua|php|exe|dll|so)"
)
# Folders that systems and network drives make: copies of images in them are none of the user's.
_OF_SYSTEMS = ("@eadir", "__macosx", "$recycle.bin", "system volume information", "lost+found")
_LOST_SHARE = 0.1
_HEAD = 2**16  # bytes, enough for a file's signature and header


class Listing(NamedTuple):
    """The images of one split, as its list says."""

    names: list[str]  # paths below the image root
    labels: np.ndarray  # int64[N]
    class_names: dict[int, str]  # by label, where the list has names


class Scan(NamedTuple):
    """The files below a folder, as paths relative to it, and what is passed over among them."""

    images: list[str]  # sorted
    others: list[tuple[str, str, bool]]  # path, what it is, whether an image is lost by it
    real: dict[str, str]  # each folder's path without links
    unopened: (
        collections.Counter
    )  # folders that are passed over, by name: of systems, and of names that begin with a dot

    @property
    def counts(self) -> collections.Counter:
        """Images in each folder, by its path."""
        return collections.Counter(name.rpartition("/")[0] for name in self.images)


def read(root: pathlib.Path, *, layout: str = "auto", skip_other_files: bool = False) -> dict[str, Listing]:
    """Read a folder with a sub-folder a class, or one with such folders under train/, val/ and test/.

    Args:
      root: the folder.
      layout: "classes" where its sub-folders are classes although they look like splits; "auto" to see.
      skip_other_files: go on where a class loses a tenth or more of its files, because they are no images that are
        read.

    Returns:
      Listings by split: train, and validation and test where they are; a validation split alone is the test.

    Raises:
      UserError: no such folder, sub-folders that cannot be meant as classes, or files that are lost.
    """
    if not root.is_dir():
        raise UserError(f"config.data.dir is {root}, which is no folder; it must hold a sub-folder for each class")
    found = scan(root)
    if found.unopened:
        said = "%s: %d folders of systems, or with a name that begins with a dot, are passed over: %s"
        _log.info(said, root, found.unopened.total(), _few([f"{n} {name}" for name, n in found.unopened.most_common()]))
    if wrong := [name for name in found.images if "\n" in name or "\r" in name]:
        raise UserError(
            f"the name of {len(wrong)} images under {root} holds a line break, such as {wrong[0]!r}; a list of images "
            "has a name a line: rename them"
        )
    splits = {} if layout == "classes" else split_folders(root, found.counts)
    if not splits:
        listings = {"train": _classes(root, "", found, layout, skip_other_files)}
    else:
        listings = {
            split: _classes(root, name, found, layout, skip_other_files, 2 if split == "train" else 1)
            for split, name in splits.items()
        }
        if "test" not in listings and "validation" in listings:
            splits["test"], listings["test"] = splits.pop("validation"), listings.pop("validation")
        _log.info("%s: %s", root, ", ".join(f"{name}/ is for {split}" for split, name in splits.items()))
        _say_what_is_beside(root, found, splits)
        _check_same_names(root, splits, listings)
    ids = {name: c for c, name in enumerate(sorted({n for x in listings.values() for n in x.class_names.values()}))}

    def renumbered(listing: Listing) -> Listing:
        table = np.array([ids[listing.class_names[c]] for c in range(len(listing.class_names))])
        return listing._replace(labels=table[listing.labels], class_names={c: name for name, c in ids.items()})

    return {split: renumbered(listing) for split, listing in listings.items()}


def scan(root: pathlib.Path) -> Scan:
    """List all files below a folder, in sub-folders and behind links.

    Names that begin with a dot are passed over, and folders that systems make, such as @eaDir and __MACOSX.

    Raises:
      UserError: a folder cannot be listed.
    """
    found, others, real = [], [], {"": os.path.realpath(root)}
    unopened: collections.Counter = collections.Counter()
    seen: dict[tuple[str, ...], set[str]] = {}  # links may lead back: each folder once below each class
    todo = [("", (real[""],))]
    while todo:
        below, above = todo.pop()
        try:
            with os.scandir(root / below) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"cannot list the folder {root / below} ({error.strerror})") from None
        for entry in entries:
            name = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir():
                if entry.name.startswith(".") or entry.name.lower() in _OF_SYSTEMS:
                    unopened[entry.name] += 1
                    continue
                here = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(above[-1], entry.name)
                once = seen.setdefault(tuple(name.split("/")[:2]), set())
                if here in once or _holds(here, above):
                    continue
                once.add(here)
                real[name] = here
                todo.append((name, (*above, here)))
            elif what := _no_image(entry):
                others.append((name, *what))
            elif what is None:
                found.append(name)
    return Scan(sorted(found), sorted(others), real, unopened)


def _holds(folder: str, above: tuple[str, ...]) -> bool:
    """Return whether a folder is one of those above, or holds one."""
    return any(other == folder or other.startswith(folder.rstrip(os.sep) + os.sep) for other in above)


def _no_image(entry: os.DirEntry) -> tuple[str, bool] | tuple[()] | None:
    """Say what a file is that is no image, and whether one may be lost by it; () to say nothing, None for an image."""
    suffix = os.path.splitext(entry.name.lower())[1]
    if entry.name.startswith("."):  # of a system, or a Mac's notes on a file
        hidden = not entry.name.startswith("._") and entry.name.lower().endswith(tuple(decode.suffixes()))
        return ("with a name that begins with a dot", False) if hidden else ()
    if not entry.is_file():
        return "that are no regular files", True
    if suffix in decode.suffixes():
        return None
    if suffix:
        # Windows' streams arrive elsewhere as files of their own: Thumbs.db:encryptable, 1.jpg:Zone.Identifier.
        return suffix, not _BESIDE.fullmatch(suffix.partition(":")[0])
    try:
        with storage.open_regular(entry.path) as file:
            head = file.read(_HEAD)
    except OSError:
        return "without a suffix that cannot be read", True
    if decode.is_image(head):
        return None
    return "without a suffix that are no images", b"\0" in head


def role(name: str) -> tuple[str, tuple[str, ...]]:
    """Return the split that a folder's name means, "" for none, and the words of the name that say nothing of it."""
    words = [part for word in _words(name) for part in _without_set(word)]
    of = [next((split for split, known in _SPLITS.items() if word in known), "") for word in words]
    rest = tuple(word for word, split in zip(words, of, strict=True) if not split and not _FILLERS.fullmatch(word))
    splits = [split for split in of if split]
    if splits == ["train", "validation"]:  # as trainval
        splits = ["train"]
    return (splits[0] if len(splits) == 1 else ""), rest


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case: of trainA, train_A and train-a the same two."""
    return re.findall(r"[^\W\d_]+", re.sub("(?<=[a-z])(?=[A-Z])", " ", name).lower())


def _without_set(word: str) -> tuple[str, ...]:
    """Split "trainset" into "train" and "set"."""
    for end in ("set", "data", "images"):
        begin = word.removesuffix(end)
        if begin != word and any(begin in known for known in _SPLITS.values()):
            return begin, end
    return (word,)


def split_folders(root: pathlib.Path, counts: Mapping[str, int]) -> dict[str, str]:
    """Find the splits among the sub-folders of a folder by their names and by what they hold.

    Args:
      root: the folder, for messages.
      counts: images in each folder below it, by its path.

    Returns:
      The folder of each split; {} where the sub-folders are no splits.

    Raises:
      UserError: they are called after splits, but it cannot be seen which images are of which class.
    """
    tops = _by_top(counts)
    roles = {top: role(top) for top in tops}
    training = {top: rest for top, (split, rest) in roles.items() if split == "train"}
    for rest in sorted(dict.fromkeys(training.values()), key=len):
        group = {top: split for top, (split, words) in roles.items() if split and words == rest}
        if list(group) == list(training) and _is_nested(tops[next(iter(training))]):  # train_mini/ and val/
            group |= {top: split for top, (split, words) in roles.items() if split and not words}
        found: dict[str, list[str]] = {}
        for top, split in group.items():
            found.setdefault(split, []).append(top)
        named = {name for top, split in group.items() if split == "train" for name in tops[top].nested}
        flat = [top for top, split in group.items() if split != _UNUSED and _is_flat(top, split, named, counts)]
        flat.sort(key=lambda top: list(_SPLITS).index(group[top]))
        tested = [top for top, split in group.items() if split not in ("train", _UNUSED) and top not in flat]
        beside = [top for top in roles if top not in group]
        if len(found) == 1 and (flat or (beside and len(tops[found["train"][0]].nested) < 2)):
            continue  # a class that is called train
        if len(found) == 1 and beside:
            raise UserError(
                f"{root / found['train'][0]} holds folders of images, as a training split does, but {_few(beside)} "
                "beside it are not called as its other splits would be; call them val/ and test/, give the folder with "
                f"the classes by --config.data.dir={root / found['train'][0]}, or name list files by "
                "--config.data.train_list; where all are classes, say so by --config.data.layout=classes"
            )
        if twice := next((split for split, folders in found.items() if len(folders) > 1 and split != _UNUSED), ""):
            raise UserError(
                f"{root} has several folders for one split, {' and '.join(f'{x}/' for x in found[twice])}; keep one, "
                "or name list files by --config.data.train_list, validation_list and test_list; where all are classes, "
                "say so by --config.data.layout=classes"
            )
        if flat and (group[flat[0]] == "train" or not tested):
            raise _no_classes_in(root, flat[:1] if group[flat[0]] == "train" else flat, counts)
        for top in flat:  # usual for the test images of a contest, whose labels are kept
            _log.warning(
                "%s holds %d images and no folder for each class: they count as unlabelled and are not used",
                root / top, _total(tops[top]),
            )  # fmt: skip
            del found[group[top]]
        used = [split for split in _SPLITS if split in found and split != _UNUSED]
        return {split: _doubled(found[split][0], counts, split) for split in used}
    called = sorted({split for split, rest in roles.values() if split and not rest} - {_UNUSED})
    if len(called) > 1 and all(split for split, _ in roles.values()):
        raise UserError(
            f"{root} has folders for {' and '.join(called)} ({', '.join(sorted(roles))}) and none for training; call "
            "the one to train on train/; where all are classes, say so by --config.data.layout=classes"
        )
    return {}


def _is_flat(folder: str, split: str, named: set[str], counts: Mapping[str, int]) -> bool:
    """Return whether the images of a split are in no folders of classes, but in itself, or in one test/ or images/.

    `named` are the sub-folders of the training split: one that is called so is a class.
    """
    if not _is_nested(_by_top(counts)[folder]):
        return True
    within = _within(_doubled(folder, counts, split), counts)
    if len(below := _by_top(counts, within)) == 1 and role(only := next(iter(below)))[0] == split:
        within = f"{within}/{only}"
    is_class = len(named) > 1 and within.rpartition("/")[2] in named
    return within != folder and not is_class and not _by_top(counts, within)


def _no_classes_in(root: pathlib.Path, flat: list[str], counts: Mapping[str, int]) -> UserError:
    first = root / flat[0]
    texts = sorted(path.name for suffix in ("txt", "csv", "json") for path in first.glob(f"*.{suffix}"))
    said = f" ({texts[0]} in it may say it)" if texts else ""
    as_well = f", nor has {_few(flat[1:])}" if flat[1:] else ""
    away = "" if role(flat[0])[0] == "train" else "take away what has no labels, "
    return UserError(
        f"{first} holds {_total(_by_top(counts)[flat[0]])} images and no folder for each class{as_well}, so it cannot "
        f"be seen which class they are of{said}; make a folder for each class in it, {away}or name list files by "
        "--config.data.train_list and test_list, or give only the folder with classes by --config.data.dir; where it "
        "is a class itself, as those beside it are, say so by --config.data.layout=classes"
    )


class _Top(NamedTuple):
    """How many images a sub-folder has."""

    direct: int  # in itself
    nested: dict[str, int]  # by its own sub-folders


def _by_top(counts: Mapping[str, int], folder: str = "") -> dict[str, _Top]:
    """Sum images up by the sub-folders of a folder ("" for the root); those in itself are of none."""
    tops: dict[str, _Top] = {}
    begin = f"{folder}/" if folder else ""
    for path, count in counts.items():
        if not path.startswith(begin) or not (below := path[len(begin) :]):
            continue
        top, _, rest = below.partition("/")
        direct, nested = tops.get(top, _Top(0, {}))
        if rest:
            sub = rest.partition("/")[0]
            nested[sub] = nested.get(sub, 0) + count
        tops[top] = _Top(direct if rest else direct + count, nested)
    return tops


def _total(top: _Top) -> int:
    return top.direct + sum(top.nested.values())


def _is_nested(top: _Top) -> bool:
    """Return whether the images of a folder are in sub-folders of it, but for a few."""
    return sum(top.nested.values()) > 9 * top.direct


def _doubled(folder: str, counts: Mapping[str, int], split: str) -> str:
    """Return where a split's classes are: in its folder, or in the only one there, as test/test/ or test/images/."""
    tops = _by_top(counts, folder)
    if (
        len(tops) == 1
        and not counts.get(folder)
        and role(only := next(iter(tops)))[0] == split
        and _is_nested(tops[only])
    ):
        folder = f"{folder}/{only}"
    within = _within(folder, counts)
    return within if _by_top(counts, within) else folder


def _say_what_is_beside(root: pathlib.Path, found: Scan, splits: dict[str, str]) -> None:
    """Say which images are in no split; refuse a folder that is called after a split and has lost all of its images."""
    with_images = {name.partition("/")[0] for name in found.images}
    for top in sorted(name for name in found.real if name and "/" not in name and name not in with_images):
        if role(top)[0] in ("", _UNUSED):
            continue
        lost = collections.Counter(
            what for name, what, is_loss in found.others if is_loss and name.startswith(f"{top}/")
        )
        if lost:
            raise UserError(
                f"{root / top} holds no image that is read ({_counted(lost)}); convert them to JPEG or PNG, or take "
                "the folder away"
            )
        _log.warning("%s holds no image: no split is made of it", root / top)
    inside = tuple(f"{folder}/" for folder in splits.values())
    beside = collections.Counter(name.partition("/")[0] for name in found.images if not name.startswith(inside))
    if beside:
        shown = _few([f"{count} images in {top}" for top, count in beside.items()])
        _log.warning("%s: passed over, for they are in no split: %s", root, shown)


def _check_same_names(root: pathlib.Path, splits: dict[str, str], listings: dict[str, Listing]) -> None:
    """Refuse classes whose names in another split differ from those in training by capital letters alone."""

    def plain(name):
        return unicodedata.normalize("NFC", name).casefold()

    names = set(listings["train"].class_names.values())
    alike = {plain(name): name for name in sorted(names)}
    for split, listing in listings.items():
        others = [name for name in listing.class_names.values() if name not in names and plain(name) in alike]
        if others:
            raise UserError(
                f"{len(others)} of the classes in {root / splits[split]} are written otherwise than in "
                f"{root / splits['train']}, such as {others[0]!r} and {alike[plain(others[0])]!r}; give the folders "
                "of a class the same name, in capital and small letters alike"
            )


def check_classes(where: pathlib.Path, counts: Mapping[str, int], folder: str = "") -> None:
    """Refuse sub-folders that cannot be classes, by what they hold.

    Args:
      where: the folder, for messages.
      counts: images in each folder, by its path.
      folder: the part of the paths that is the folder.

    Raises:
      UserError: sub-folders hold folders of the same names, or one holds folders and others images.
    """
    tops = _by_top(counts, folder)
    nested = {top: of for top, of in tops.items() if _is_nested(of)}
    begin = f"{folder}/" if folder else ""
    of_top: dict[str, dict[str, int]] = {top: {} for top in nested}
    for path, count in counts.items():
        if path.startswith(begin) and (top := path[len(begin) :].partition("/")[0]) in nested:
            of_top[top][path] = count
    within = {top: _within(f"{begin}{top}", of_top[top]) for top in nested}
    inner = {top: {sub for sub in _by_top(of_top[top], path) if not _is_filler(sub)} for top, path in within.items()}
    times = collections.Counter(name for names in inner.values() for name in names)
    shared = sorted(name for name, count in times.items() if count > 1)
    one = where / next(iter(within.values()), begin)[len(begin) :]
    ways = (
        f"give the folder whose sub-folders are the classes by --config.data.dir={one}, or "
        "call the splits train/, val/ and test/, or name list files by --config.data.train_list and test_list; where "
        f"they are classes, whatever is in them, say so by --config.data.layout=classes"
    )
    inside = [sub for sub in shared if role(sub)[0] and not role(sub)[1]]
    if inside:
        first = next(top for top, names in inner.items() if inside[0] in names)
        raise UserError(
            f"{where} has its splits inside of its sub-folders ({first}/{inside[0]}, in {times[inside[0]]} of them), "
            f"which would be trained on; put them the other way round ({inside[0]}/{first}), or name list files by "
            "--config.data.train_list and test_list; where they are no splits, say so by --config.data.layout=classes"
        )
    if len(shared) > 1 or any(2 * len(names.intersection(shared)) >= len(names) > 0 for names in inner.values()):
        holders = [top for top, names in inner.items() if shared[0] in names]
        raise UserError(
            f"the sub-folders {_few(holders)} of {where} hold folders of the same names ({_few(shared)}), as splits do "
            f"and classes do not; {ways}"
        )
    several = {top: of for top, of in nested.items() if len(of.nested) > 1}
    flat = [top for top in tops if top not in nested]
    if several and flat:
        first = next(iter(several))
        raise UserError(
            f"of the sub-folders of {where} some hold images ({_few(flat)}) and some only folders of images "
            f"({_few(list(several))}: {_few([f'{first}/{sub}' for sub in several[first].nested])}), so they cannot all "
            f"be classes; {ways}"
        )
    if nested and len(tops) > 1:
        _log.info("%s: the images of %s are in folders of theirs, of any name", where, _few(list(nested)))


def _within(folder: str, counts: Mapping[str, int]) -> str:
    """Return the folder itself, or its images/ where it holds images in no other folder."""
    while len(tops := _by_top(counts, folder)) == 1 and _is_filler(only := next(iter(tops))):
        folder = f"{folder}/{only}"
    return folder


def _is_filler(name: str) -> bool:
    words = _words(name)
    return bool(words) and all(map(_FILLERS.fullmatch, words))


def _classes(
    root: pathlib.Path, folder: str, found: Scan, layout: str, skip_other_files: bool, least: int = 2
) -> Listing:
    """List the images of a folder's sub-folders, a class each, sorted by name; paths are relative to the root.

    Fewer classes than `least` are refused.
    """
    where = root / folder
    below = f"{folder}/" if folder else ""
    if layout == "auto":
        check_classes(where, found.counts, folder)
    members: dict[str, list[str]] = {}
    stray = 0
    depth = len(below)
    for name in found.images:
        if name.startswith(below):
            top, _, rest = name[depth:].partition("/")
            if rest:
                members.setdefault(top, []).append(name)
            else:
                stray += 1
    folders = sorted(name[depth:] for name in found.real if name.startswith(below) and name[depth:])
    folders = [name for name in folders if "/" not in name]
    _check_lost(where, below, members, folders, found, skip_other_files)
    members = {top: _once(where / top, members[top], found) for top in folders if top in members}
    if len(members) < least:
        only = next(iter(members), None)
        deeper = only and any(name.count("/") > below.count("/") + 1 for name in members[only])
        hint = f" (did you mean {where / only}?)" if deeper else ""
        raise UserError(
            f"{where} has {len(members)} sub-folders with images; it must have one for each class, "
            f"{'one' if least == 1 else 'two'} at least{hint}"
        )
    if stray:
        _log.warning("%s: %d images lie in no sub-folder and are of no class: passed over", where, stray)

    empty: dict[str, collections.Counter] = {top: collections.Counter() for top in folders if top not in members}
    for name, what, _ in found.others:
        if name.startswith(below) and (top := name[depth:].partition("/")[0]) in empty:
            empty[top][what] += 1
    if empty:
        said = [f"{where / top} ({_counted(held)})" if held else str(where / top) for top, held in empty.items()]
        _log.warning("no image in %s: no class is made of it", _few(said))
    labels = np.repeat(np.arange(len(members)), [len(names) for names in members.values()])
    return Listing([name for names in members.values() for name in names], labels, dict(enumerate(members)))


def _once(where: pathlib.Path, names: list[str], found: Scan) -> list[str]:
    """Leave out images that links show twice within a class."""
    files = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        files.setdefault((found.real[folder], file), name)
    if len(files) < len(names):
        _log.warning("%s: %d images are there twice, by links; each counts once", where, len(names) - len(files))
    return list(files.values())


def _check_lost(
    where: pathlib.Path, below: str, members: dict[str, list[str]], folders: list[str], found: Scan, go_on: bool
) -> None:
    """Say which files of each class are passed over; stop where a class loses a tenth or more of its files."""
    others: dict[str, collections.Counter] = {}
    lost: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for name, what, is_loss in found.others:
        top, _, rest = name[len(below) :].partition("/")
        if name.startswith(below) and rest:
            others.setdefault(top, collections.Counter())[what] += 1
            lost[top][what] += is_loss
    if not others:
        return
    total: collections.Counter = sum(others.values(), collections.Counter())
    less_of = {top: counts.total() for top, counts in lost.items()}
    level = logging.WARNING if any(less_of.values()) else logging.INFO
    said = "%s: %d files are passed over, for they are no images that are read: %s"
    _log.log(level, said, where, total.total(), _counted(total))
    ranked = sorted(others, key=lambda top: (-less_of[top], -others[top].total(), top))
    for top in ranked[:20]:
        kept = len(members.get(top, ()))
        _log.log(level, "  class %s: %d images; passed over: %s", top, kept, _counted(others[top]))
    if len(ranked) > 20:
        _log.log(level, "  and in %d more classes", len(ranked) - 20)
    less = [n for n in ranked if less_of[n] and less_of[n] >= _LOST_SHARE * (less_of[n] + len(members.get(n, ())))]
    if less and not go_on:
        first = less[0]
        more = f"; {len(less) - 1} more of the classes lose a tenth or more of theirs" if len(less) > 1 else ""
        raise UserError(
            f"of the class {first!r} in {where} {len(members.get(first, ()))} files are images that are read and "
            f"{less_of[first]} are not ({_counted(lost[first])}){more}; convert them to JPEG or PNG, take them away, "
            "or go on without them by --config.data.skip_other_files"
        )


def _counted(counts: collections.Counter) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.most_common() if count)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
