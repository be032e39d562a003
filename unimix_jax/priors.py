"""Class counts, and the priors, class weights and groups of classes that follow from them. numpy only.

A "prior" is a probability per class, "counts" are images per class, "imbalance" is the largest class divided by the
smallest.
"""

import math
import operator

import numpy as np
from numpy.typing import ArrayLike

from unimix_jax import names, registry, storage
from unimix_jax.errors import UserError, one_of

__all__ = [
    "GROUPINGS",
    "GROUPS",
    "class_counts",
    "effective_number_weights",
    "groups",
    "inverse_weights",
    "prior",
    "test_prior",
]
__getattr__, __dir__ = names.of_module(__name__, __all__)

GROUPINGS = ("shots", "thirds")
GROUPS = ("many", "medium", "few")  # of classes
_INTEGERS = "iu"  # kinds of numpy's types
_REAL = "iuf"
LABELS_ARE = "they must be integers [N], a class from 0 for each example"
_LARGEST_PRIOR = 4 * storage.MIB  # bytes of a file of a test prior


def class_counts(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the images of each class.

    Args:
      labels: int[N], 0 <= label < num_classes.
      num_classes: K.

    Returns:
      int64[K].

    Raises:
      UserError: a label is no integer, or lies outside of 0..K-1.

    Example:
      >>> class_counts(np.array([0, 0, 2]), 3)
      array([2, 0, 1])
    """
    num_classes = whole_number(num_classes, "num_classes", least=1)
    if not np.size(labels):
        return np.zeros(num_classes, np.int64)
    labels = checked_labels(labels, classes=num_classes)
    return np.bincount(labels, minlength=num_classes).astype(np.int64)


def prior(counts: np.ndarray, power: float = 1.0) -> np.ndarray:
    """Turn counts into a probability per class, proportional to counts**power.

    Args:
      counts: int[K] or float[K], no negatives; a class without images keeps probability 0.
      power: 1 the natural prior, 0 uniform over the classes that have images, -1 inverse.

    Returns:
      float64[K], sums to 1.

    Raises:
      UserError: counts of another shape, negative or not finite, or all 0.

    Example: 90 and 10 images, and the inverse.
      >>> prior([90, 10]), prior([90, 10], -1)
      (array([0.9, 0.1]), array([0.1, 0.9]))
    """
    counts = checked_counts(counts)
    powers = np.zeros_like(counts)
    np.power(counts, power, out=powers, where=counts > 0)
    return powers / powers.sum()


@registry.ClassWeight(options={"beta": registry.at_least(0, below=1)})
def effective_number_weights(counts: np.ndarray, *, beta: float = 0.9999) -> np.ndarray:
    """Weigh classes by the inverse of their effective number of images, (1 - beta**n) / (1 - beta).

    Args:
      counts: int[K], none 0.
      beta: 0 <= beta < 1; 0 gives ones, towards 1 it becomes the inverse of the counts.

    Returns:
      float64[K], sums to K.

    Raises:
      UserError: counts of another shape, or not all above 0; beta out of its bounds.

    Source: Eq. B.13 of the paper's supplement, normalised as in kaidic/LDAM-DRW, cifar_train.py.

    Example: between ones and the inverse of the counts.
      >>> effective_number_weights([90, 10], beta=0.9).round(3)
      array([0.789, 1.211])
    """
    counts = checked_counts(counts, zeros=False)
    registry.check_options(effective_number_weights, beta=beta)
    weights = (1 - beta) / -np.expm1(counts * np.log(beta)) if beta > 0 else np.ones_like(counts)
    return weights * (len(counts) / weights.sum())


@registry.ClassWeight(no_recipe="the limit of effective_number_weights, for methods of a user")
def inverse_weights(counts: np.ndarray) -> np.ndarray:
    """Weigh classes by the inverse of their counts.

    Args:
      counts: int[K], none 0.

    Returns:
      float64[K], sums to K.

    Raises:
      UserError: counts of another shape, or not all above 0.

    Example:
      >>> inverse_weights([90, 10])
      array([0.2, 1.8])
    """
    counts = checked_counts(counts, zeros=False)
    return prior(counts, -1) * len(counts)


def groups(counts: np.ndarray, by: str = "shots") -> dict[str, np.ndarray]:
    """Split the classes into many, medium and few.

    shots: more than 100 training images, 20 to 100, fewer than 20. thirds: classes sorted by count
    (ties in class order), cut at floor(K/3) and ceil(2K/3). A group may be empty.

    Args:
      counts: int[K], training images per class.
      by: "shots" or "thirds".

    Returns:
      {"many": bool[K], "medium": bool[K], "few": bool[K]}.

    Raises:
      UserError: an unknown rule, or counts of another shape, negative, or all 0.

    Source: facebookresearch/classifier-balancing, utils.py (shots); XuZhengzhuo/Prior-LT, config/ (thirds).

    Example: 500, 60 and 5 images.
      >>> {name: members.tolist() for name, members in groups([500, 60, 5]).items()}
      {'many': [True, False, False], 'medium': [False, True, False], 'few': [False, False, True]}
    """
    one_of("grouping of classes", by, GROUPINGS)
    counts = checked_counts(counts)
    if by == "shots":
        many, few = counts > 100, counts < 20
    else:
        rank = np.empty(len(counts), int)
        rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
        many, few = rank < len(counts) // 3, rank >= -(-2 * len(counts) // 3)
    return dict(zip(GROUPS, (many, ~(many | few), few), strict=True))


def test_prior(text: str, counts: np.ndarray) -> np.ndarray:
    """Return the prior of the data to predict, as a user writes it.

    Args:
      text: "uniform"; "train"; "imbalance:R", exponential over the classes ranked by training count, the most frequent
        first (R below 1 reverses the order); or the path of a text file with one positive number per class.
      counts: int[K], training images per class.

    Returns:
      float64[K], positive, sums to 1.

    Raises:
      UserError: the text is none of these, or the file has another number of classes or a number that is not positive.

    Example:
      >>> test_prior("imbalance:9", np.array([500, 20]))
      array([0.9, 0.1])
    """
    counts = np.asarray(counts)
    if text == "uniform":
        return np.full(len(counts), 1 / len(counts))
    if text == "train":
        return prior(counts)
    if text.startswith("imbalance:"):
        return _exponential_prior(text, counts)
    numbers = storage.read_numbers(text, _LARGEST_PRIOR)
    if numbers is None:
        raise UserError(f"test_prior is {text!r}; it must be uniform, train, imbalance:R or the path of a file")
    weights = np.array(numbers)
    if weights.shape != counts.shape or not np.isfinite(weights).all() or not (weights > 0).all():
        raise UserError(
            f"the test prior in {text} has {len(weights)} numbers; it must hold {len(counts)} positive numbers"
        )
    with np.errstate(over="ignore"):
        total = weights.sum()
    if not np.isfinite(total) or not (weights / total > 0).all():
        raise UserError(f"the test prior in {text} has numbers too large or too far apart; shares sum to 1")
    return prior(weights)


def _exponential_prior(text: str, counts: np.ndarray) -> np.ndarray:
    """Return the prior of "imbalance:R", float64[K]."""
    try:
        imbalance = float(text.removeprefix("imbalance:"))
    except ValueError:
        imbalance = math.nan
    if not 1e-100 <= imbalance <= 1e100:
        raise UserError(
            f"test_prior is {text!r}; after 'imbalance:' comes a positive number, such as imbalance:100, within "
            "1e-100 and 1e100"
        )
    weights = np.empty(len(counts))
    ranked = np.argsort(-counts, kind="stable")
    weights[ranked] = imbalance ** (-np.arange(len(counts)) / max(len(counts) - 1, 1))
    return prior(weights)


def checked_labels(labels: ArrayLike, what: str = "labels", *, classes: int | None = None) -> np.ndarray:
    """Return labels after a check that they are classes.

    Args:
      labels: int[N].
      what: their name in the sentence of an error.
      classes: K, above all labels; None if it is not known.

    Returns:
      int[N], in the type of `labels`.

    Raises:
      UserError: another shape, no integers, none at all, or a label outside of 0..K-1.

    Example:
      >>> checked_labels([0, 2], classes=3)
      array([0, 2])
    """
    labels = array_of(labels, what)
    if labels.dtype.kind not in _INTEGERS or labels.ndim != 1 or not len(labels):
        raise UserError(f"{what} are {labels.dtype}{list(labels.shape)}; {LABELS_ARE}")
    if labels.min() < 0 or (classes is not None and labels.max() >= classes):
        wrong = labels[(labels < 0) | (labels >= (np.inf if classes is None else classes))][0]
        raise UserError(
            f"{what} hold {wrong}; they must be classes from 0"
            if classes is None
            else f"{what} hold {wrong}; with {classes} classes they must lie in 0..{classes - 1}"
        )
    return labels


def checked_counts(
    counts: ArrayLike, what: str = "counts", *, classes: int | None = None, zeros: bool = True
) -> np.ndarray:
    """Return a number for each class, such as counts, a prior or weights, after a check of shape and values.

    Args:
      counts: int[K] or float[K].
      what: their name in the sentence of an error.
      classes: K; None if it is not known.
      zeros: whether some of them, but not all, may be 0.

    Returns:
      float64[K].

    Raises:
      UserError: another shape, a number that is negative or not finite, or a 0.

    Example:
      >>> checked_counts([90, 10], classes=2)
      array([90., 10.])
    """
    values = array_of(counts, what)
    if values.dtype.kind not in _REAL or values.ndim != 1 or not len(values) or len(values) != (classes or len(values)):
        each = f"[{classes or 'K'}], a number for each {f'of the {classes} classes' if classes else 'class'}"
        raise UserError(f"{what} has the shape {list(values.shape)} and the type {values.dtype}; it must be {each}")
    values = values.astype(np.float64)
    right = np.isfinite(values) & (values >= 0 if zeros else values > 0)
    if not right.all():
        at = int(right.argmin())
        must = "0 or above" if zeros else "above 0"
        raise UserError(f"{what} is {values[at]:g} for class {at}; it must be {must} for each class, and finite")
    if not values.any():
        raise UserError(f"{what} is 0 for all classes; one of them must be above 0")
    return values


def array_of(values: ArrayLike, what: str) -> np.ndarray:
    """Return an array; the floating-point types that numpy does not know, such as bfloat16, as float32.

    Args:
      values: an array, or nested lists of numbers.
      what: their name in the sentence of an error.

    Raises:
      UserError: lists of unequal lengths, or what numpy cannot read.

    Example:
      >>> array_of([1.0, 2.0], "counts")
      array([1., 2.])
    """
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{what} is no array of numbers: {' '.join(str(error).split())}") from None
    foreign = array.dtype.kind == "V" and array.dtype.type is not np.void  # of ml_dtypes
    return array.astype(np.float32) if foreign else array


def whole_number(number: int, what: str, *, least: int) -> int:
    """Return a whole number after a check.

    Args:
      number: an int, of Python or numpy.
      what: its name in the sentence of an error.
      least: the smallest that is allowed.

    Raises:
      UserError: another type, or too small.

    Example:
      >>> whole_number(np.int64(3), "bins", least=1)
      3
    """
    try:
        number = operator.index(number)
    except TypeError:
        raise UserError(f"{what} is {number!r}; it must be a whole number") from None
    if number < least:
        raise UserError(f"{what} is {number}; it must be at least {least}")
    return number
