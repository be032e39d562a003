"""Long-tailed subsets of a data set, and images held out for the test and for validation. numpy only.

"Counts" are images per class, "imbalance" is the largest class divided by the smallest. Where a function takes `data`,
it is the group `config.data`, of which it reads `profile`, `imbalance` and `subset_seed`.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from unimix_jax import priors
from unimix_jax.data.rng import Stream, generator
from unimix_jax.errors import UserError, one_of

if TYPE_CHECKING:
    from ml_collections import ConfigDict

PROFILES = ("exp", "step", "pareto")


def profile(kind: str, n_max: int, num_classes: int, imbalance: float) -> np.ndarray:
    """Return the counts of a long-tailed training set, class 0 the largest.

    exp: n_max * (1/imbalance)**(c/(K-1)). step: the first ceil(K/2) classes have n_max, the others n_max/imbalance.
    pareto: n_max * (c+1)**-a, with the exponent a for which the last class has n_max/imbalance. All are rounded down
    to whole images.

    Args:
      kind: "exp", "step" or "pareto".
      n_max: images of the largest class, at least 1.
      num_classes: K >= 1.
      imbalance: at least 1.

    Returns:
      int64[K]; a class can have 0 images, which the data sources refuse.

    Raises:
      UserError: the kind is unknown, or the imbalance is below 1.

    Source: kaidic/LDAM-DRW, imbalance_cifar.py (exp, and step for even K); the form by ranks of Pareto's is ours.

    Example:
      >>> profile("exp", 5000, 3, imbalance=100)
      array([5000,  500,   50])
    """
    one_of("profile (config.data.profile)", kind, PROFILES)
    if not (math.isfinite(imbalance) and imbalance >= 1):
        raise UserError(
            f"imbalance is {imbalance:g}; it is the largest class divided by the smallest and must be at least 1"
        )
    rank = np.arange(num_classes)
    last = max(num_classes - 1, 1)
    if kind == "exp":
        # Python floats in this order: numpy's power differs in the last bit, and a count could too.
        shares = [(1 / imbalance) ** (c / last) for c in range(num_classes)]
    elif kind == "step":
        shares = np.where(rank < (num_classes + 1) // 2, 1.0, 1 / imbalance)
    else:
        shares = (rank + 1.0) ** (-math.log(imbalance) / math.log(num_classes) if num_classes > 1 else 0.0)
        shares += 1e-12  # the last share is 1/imbalance but for rounding, which must not cost an image
    return np.array([int(n_max * share) for share in shares], np.int64)


def long_tailed_subset(labels: np.ndarray, counts: np.ndarray, seed: int = 0) -> np.ndarray:
    """Choose `counts[c]` images of each class c as the field does: shuffle a class, keep its front.

    With seed 0 and the official CIFAR labels these are the published subsets of CIFAR-LT. Subsets are nested: a
    smaller count keeps the front of the same shuffle.

    Args:
      labels: int[N] of the full set, in file order.
      counts: int[K], images to keep.
      seed: of a private legacy generator, whose shuffle equals that of `np.random.seed(seed)`.

    Returns:
      int64[sum(counts)], positions, class by class.

    Raises:
      UserError: a class has fewer images than its count.

    Source: kaidic/LDAM-DRW and XuZhengzhuo/Prior-LT, imbalance_cifar.py.

    Example: a smaller subset is a part of a larger one.
      >>> labels = np.repeat([0, 1], 50)
      >>> small, large = (set(long_tailed_subset(labels, [n, 5]).tolist()) for n in (20, 40))
      >>> len(small), len(large), small < large
      (25, 45, True)
    """
    random = np.random.RandomState(seed)
    chosen = []
    for c, count in enumerate(counts):
        positions = np.where(labels == c)[0]
        if len(positions) < count:
            raise UserError(f"class {c} has {len(positions)} images, but the long-tailed subset needs {count}")
        random.shuffle(positions)
        chosen.append(positions[:count])
    return np.concatenate(chosen).astype(np.int64)


def subset_of_balanced(labels: np.ndarray, num_classes: int, data: "ConfigDict") -> np.ndarray:
    """Choose a long-tailed training set; its largest class has as many images as the smallest class of the full set.

    Args:
      labels: int[N] of the full set.
      num_classes: K; class 0 becomes the largest.
      data: the group `config.data`.

    Returns:
      int64[M], positions, class by class.

    Raises:
      UserError: a class would be left without an image.
    """
    full = priors.class_counts(labels, num_classes)
    counts = profile(data.profile, int(full.min()), num_classes, data.imbalance)
    if full.min() > 0 and not counts.all():
        first = np.flatnonzero(counts == 0)[0]
        raise UserError(
            f"an imbalance of {data.imbalance:g} leaves no training image in class {first}: the profile starts from "
            f"the size of the smallest class, {full.min()}; set a smaller imbalance, or 1 for all images"
        )
    return long_tailed_subset(labels, counts, data.subset_seed)


def subset_of_skewed(labels: np.ndarray, num_classes: int, data: "ConfigDict") -> np.ndarray:
    """Choose a long-tailed training set of a set that is skewed already; its largest class becomes the largest.

    The subset is as large as the profile allows: every class has enough images for its rank.

    Args:
      labels: int[N] of the full set.
      num_classes: K; classes of the same size are ranked by their number.
      data: the group `config.data`.

    Returns:
      int64[M], positions, class by class.

    Raises:
      UserError: a class would be left without an image.
    """
    full = priors.class_counts(labels, num_classes)
    ranked = np.argsort(-full, kind="stable")
    low, high = 0, int(full.max())
    while low < high:  # a profile rises with its largest class
        middle = (low + high + 1) // 2
        fits = (profile(data.profile, middle, num_classes, data.imbalance) <= full[ranked]).all()
        low, high = (middle, high) if fits else (low, middle - 1)
    counts = np.empty(num_classes, np.int64)
    counts[ranked] = profile(data.profile, max(low, 1), num_classes, data.imbalance)
    if not counts.all():
        raise UserError(
            f"an imbalance of {data.imbalance:g} leaves no training image in class {np.flatnonzero(counts == 0)[0]}: "
            f"the largest class could have {low} at most; set a smaller imbalance, or 1 for all images"
        )
    return long_tailed_subset(labels, counts, data.subset_seed)


def shifted_test_subset(labels: np.ndarray, counts: np.ndarray, imbalance: float, seed: int = 0) -> np.ndarray:
    """Choose a test set of another imbalance: an exponential profile, for which surplus images are discarded.

    The largest class keeps as many images as the smallest class of the test set has. A class can keep no image.

    Args:
      labels: int[N] of the test set.
      counts: int[K], training images: the class with the most is the first of the profile.
      imbalance: above 0; below 1 the order is reversed, so that the rarest class in training keeps the most images.
      seed: of the choice.

    Returns:
      int64[M], positions, ascending.

    Raises:
      UserError: the imbalance is not positive, or a class has no test image.

    Source: D.2 of the paper's supplement, which does not state which images it keeps.
    """
    if not (np.isfinite(imbalance) and imbalance > 0):
        raise UserError(f"imbalance is {imbalance:g}; that of a test set must be a positive number")
    sizes = priors.class_counts(labels, len(counts))
    if not sizes.all():
        first = np.flatnonzero(sizes == 0)[0]
        raise UserError(f"class {first} has no test image, so that no subset of the test set has every class")
    by_rank = profile("exp", int(sizes.min()), len(counts), max(imbalance, 1 / imbalance))
    kept = np.empty_like(sizes)
    kept[np.argsort(-np.asarray(counts), kind="stable")] = by_rank if imbalance >= 1 else by_rank[::-1]
    return np.sort(long_tailed_subset(np.asarray(labels), kept, seed))


def hold_out(labels: np.ndarray, num_classes: int, per_class: int, seed: int) -> np.ndarray:
    """Choose the same number of test images of each class at random, for validation.

    Args:
      labels: int[N] of the test set.
      num_classes: K.
      per_class: images of each class, at least 0.
      seed: of the choice.

    Returns:
      bool[N], true for the chosen images.

    Raises:
      UserError: a class has no more images than that.
    """
    smallest = int(priors.class_counts(labels, num_classes).min())
    if not 0 <= per_class < smallest:
        raise UserError(
            f"config.data.validation_per_class is {per_class}; the smallest class has {smallest} test images, of which "
            f"0 to {smallest - 1} can be set apart"
        )
    random, chosen = generator(seed, Stream.SPLIT, 0), np.zeros(len(labels), bool)
    for c in range(num_classes):
        chosen[random.permutation(np.flatnonzero(labels == c))[:per_class]] = True
    return chosen


def balanced_splits(labels: np.ndarray, num_classes: int, per_class: dict[str, int], seed: int) -> dict:
    """Split a data set at random; each split beside training has the same number of images of each class.

    Args:
      labels: int[N].
      num_classes: K.
      per_class: images of each class in each split beside training, by the name of the split.
      seed: of the choice.

    Returns:
      {each split of `per_class`, and "train" with all other images}: int64 positions, ascending.
    """
    random, parts = generator(seed, Stream.SPLIT, 0), {name: [] for name in (*per_class, "train")}
    bounds = np.cumsum(list(per_class.values()))
    for c in range(num_classes):
        members = random.permutation(np.flatnonzero(labels == c))
        for name, positions in zip(parts, np.split(members, bounds), strict=True):
            parts[name].append(positions)
    return {name: np.sort(np.concatenate(positions)) for name, positions in parts.items()}


def stratified_splits(labels: np.ndarray, num_classes: int, shares: dict[str, float], seed: int) -> dict:
    """Split a data set at random, each class by the same shares, and keep the tail for training.

    Of n images of a class each split gets round(share * n), and at least 1 where n exceeds the number of splits.
    Training keeps at least half of a class, and a single image.

    Args:
      labels: int[N].
      num_classes: K.
      shares: of the splits beside training, by name, in the order in which they get images where there are few.
      seed: of the choice.

    Returns:
      {"train", and each split of `shares`}: int64 positions, ascending.
    """
    random, parts = generator(seed, Stream.SPLIT, 0), {name: [] for name in ("train", *shares)}
    order = np.argsort(labels, kind="stable")
    for members in np.split(order, np.cumsum(priors.class_counts(labels, num_classes))[:-1]):
        members, size, available = random.permutation(members), len(members), len(members) // 2
        for name, share in shares.items():
            count = min(max(round(share * size), int(share > 0 and size > len(shares))), available)
            available -= count
            parts[name].append(members[:count])
            members = members[count:]
        parts["train"].append(members)
    return {name: np.sort(np.concatenate(positions)) for name, positions in parts.items()}
