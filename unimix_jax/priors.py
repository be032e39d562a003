"""Class counts, and the priors, class weights and groups of classes that follow from them. numpy only.

A "prior" is a probability per class, "counts" are images per class, "imbalance" is the largest class divided by the
smallest.
"""

import math

import numpy as np

from unimix_jax import registry, storage
from unimix_jax.errors import UserError, one_of

GROUPINGS = ("shots", "thirds")
GROUPS = ("many", "medium", "few")  # of classes
_LARGEST_PRIOR = 4 * storage.MIB  # bytes of a file of a test prior


def class_counts(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the images of each class.

    Args:
      labels: int[N], 0 <= label < num_classes.
      num_classes: K.

    Returns:
      int64[K].

    Raises:
      UserError: a label lies outside of 0..K-1.

    Example:
      >>> class_counts(np.array([0, 0, 2]), 3)
      array([2, 0, 1])
    """
    labels = np.asarray(labels)
    if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
        wrong = labels[(labels < 0) | (labels >= num_classes)]
        raise UserError(
            f"label {wrong[0]} occurs, but with {num_classes} classes labels must lie in 0..{num_classes - 1}"
        )
    return np.bincount(labels, minlength=num_classes).astype(np.int64)


def prior(counts: np.ndarray, power: float = 1.0) -> np.ndarray:
    """Turn counts into a probability per class, proportional to counts**power.

    Args:
      counts: int[K] or float[K], no negatives; a class without images keeps probability 0.
      power: 1 the natural prior, 0 uniform over the classes that have images, -1 inverse.

    Returns:
      float64[K], sums to 1.

    Example: 90 and 10 images, and the inverse.
      >>> prior([90, 10]), prior([90, 10], -1)
      (array([0.9, 0.1]), array([0.1, 0.9]))
    """
    counts = np.asarray(counts, np.float64)
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

    Source: Eq. B.13 of the paper's supplement, normalised as in kaidic/LDAM-DRW, cifar_train.py.

    Example: between ones and the inverse of the counts.
      >>> effective_number_weights([90, 10], beta=0.9).round(3)
      array([0.789, 1.211])
    """
    counts = np.asarray(counts, np.float64)
    weights = (1 - beta) / -np.expm1(counts * np.log(beta)) if beta > 0 else np.ones_like(counts)
    return weights * (len(counts) / weights.sum())


@registry.ClassWeight(no_recipe="the limit of effective_number_weights, for methods of a user")
def inverse_weights(counts: np.ndarray) -> np.ndarray:
    """Weigh classes by the inverse of their counts.

    Args:
      counts: int[K], none 0.

    Returns:
      float64[K], sums to K.

    Example:
      >>> inverse_weights([90, 10])
      array([0.2, 1.8])
    """
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

    Source: facebookresearch/classifier-balancing, utils.py (shots); XuZhengzhuo/Prior-LT, config/ (thirds).

    Example: 500, 60 and 5 images.
      >>> {name: members.tolist() for name, members in groups([500, 60, 5]).items()}
      {'many': [True, False, False], 'medium': [False, True, False], 'few': [False, False, True]}
    """
    one_of("grouping of classes", by, GROUPINGS)
    counts = np.asarray(counts)
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
