"""Recognise names of folders: names of splits, and names that say nothing. Touches no files."""

import re

UNUSED = "unlabelled"
SPLITS = {  # names of folders that hold a split
    "train": ("train", "training", "trainval", "trn", "learn", "learning"),
    "validation": ("val", "valid", "validation", "validate", "dev", "devel", "development"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "heldout", "holdout"),
    UNUSED: ("unlabelled", "unlabeled", "unlabel", "pred", "predict", "prediction", "predictions", "unsupervised"),
}
# Words that add nothing to those, and names of folders that every class may have.
_FILLERS = re.compile(
    "(data)?sets?|data|splits?|seg|folders?|dir|images?|imgs?|photos?|pictures?|pics?|jpe?gs?|png|raw|orig(inals?)?"
)


def role(name: str) -> tuple[str, tuple[str, ...]]:
    """Return the split that a folder's name means.

    Args:
      name: of the folder, without those above.

    Returns:
      A key of `SPLITS`, or "" for none; and the words of the name that neither mean a split nor are fillers.

    Example:
      >>> role("dogs_train"), role("Training_Set"), role("cat")
      (('train', ('dogs',)), ('train', ()), ('', ('cat',)))
    """
    words = [part for word in _words(name) for part in _without_set(word)]
    meanings = [next((split for split, known in SPLITS.items() if word in known), "") for word in words]
    rest = tuple(w for w, split in zip(words, meanings, strict=True) if not split and not _FILLERS.fullmatch(w))
    splits = [split for split in meanings if split]
    if splits == ["train", "validation"]:  # as trainval
        splits = ["train"]
    return (splits[0] if len(splits) == 1 else ""), rest


def is_filler(name: str) -> bool:
    """Return whether a folder's name only says that images are in it, as images/ and raw/ do.

    Args:
      name: of the folder, without those above.
    """
    words = _words(name)
    return bool(words) and all(map(_FILLERS.fullmatch, words))


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case; trainA, train_A and train-a have the same two."""
    return re.findall(r"[^\W\d_]+", re.sub("(?<=[a-z])(?=[A-Z])", " ", name).lower())


def _without_set(word: str) -> tuple[str, ...]:
    """Split "trainset" into "train" and "set"."""
    for end in ("set", "data", "images"):
        begin = word.removesuffix(end)
        if begin != word and any(begin in known for known in SPLITS.values()):
            return begin, end
    return (word,)
