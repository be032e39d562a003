"""Measures of probabilities against labels, in numpy and float64.

A measure is `(probabilities, labels, ...) -> float`, in fractions of 1 or in nats; `MEASURES` lists them.
Probabilities are float[N, K], K > 1; their rows sum to 1 within 1e-5, and their entries lie in 0..1 within 1e-6. Labels
are int[N], N > 0. Sums are in float64 for every type of input, and no measure copies the whole array.

Top-label measures (accuracy, ECE, MCE, smooth ECE) use the most probable class and its probability, the confidence.
Class-wise measures (class ECE, SCE, ACE, TACE) use the probability of every class.
"""

from typing import NamedTuple

import numpy as np

from unimix_jax import registry
from unimix_jax.errors import UserError
from unimix_jax.metrics import per_example
from unimix_jax.metrics.per_example import BINS


@registry.percent(title="accuracy")
def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of examples whose most probable class, the first one of ties, is the label.

    Args:
      probabilities: float[N, K].
      labels: int[N].

    Returns:
      A share in 0..1.

    >>> probabilities, labels = np.array([[0.7, 0.3], [0.6, 0.4], [0.1, 0.9], [0.2, 0.8]]), np.array([0, 1, 1, 1])
    >>> accuracy(probabilities, labels)
    0.75
    """
    _, hits = per_example.top_label(probabilities, labels)
    return float(hits.mean())


@registry.percent(name="top5", title="top-5 accuracy", more_classes_than=5)
def top_accuracy(probabilities: np.ndarray, labels: np.ndarray, k: int = 5) -> float:
    """Return the share of examples whose label is among the k most probable classes, the first ones of ties.

    Args:
      probabilities: float[N, K].
      labels: int[N].
      k: number of classes.

    Returns:
      A share in 0..1.

    >>> probabilities, labels = np.array([[0.7, 0.3], [0.6, 0.4], [0.1, 0.9], [0.2, 0.8]]), np.array([0, 1, 1, 1])
    >>> top_accuracy(probabilities, labels, k=2)
    1.0
    """
    return float(per_example.top_hits(probabilities, labels, k).mean())


def class_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the accuracy on the examples of each class, which is its recall.

    Args:
      probabilities: float[N, K].
      labels: int[N].

    Returns:
      float64[K]; nan for a class without examples.

    >>> probabilities, labels = np.array([[0.7, 0.3], [0.6, 0.4], [0.1, 0.9], [0.2, 0.8]]), np.array([0, 1, 1, 1])
    >>> class_accuracy(probabilities, labels).round(3).tolist()
    [1.0, 0.667]
    """
    _, hits = per_example.top_label(probabilities, labels)
    return per_example.class_means(hits, labels, np.shape(probabilities)[1])


@registry.percent(title="balanced accuracy")
def balanced_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of the accuracies of the classes that have examples.

    Args:
      probabilities: float[N, K].
      labels: int[N].

    Returns:
      A share in 0..1.

    >>> probabilities, labels = np.array([[0.7, 0.3], [0.6, 0.4], [0.1, 0.9], [0.2, 0.8]]), np.array([0, 1, 1, 1])
    >>> round(balanced_accuracy(probabilities, labels), 3)
    0.833
    """
    return float(np.nanmean(class_accuracy(probabilities, labels)))


@registry.percent(title="geometric mean of class accuracies")
def geometric_mean(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the geometric mean of the accuracies of the classes that have examples.

    Args:
      probabilities: float[N, K].
      labels: int[N].

    Returns:
      A share in 0..1; 0 if one of these classes has accuracy 0.

    >>> probabilities, labels = np.array([[0.7, 0.3], [0.6, 0.4], [0.1, 0.9], [0.2, 0.8]]), np.array([0, 1, 1, 1])
    >>> round(geometric_mean(probabilities, labels), 3)
    0.816
    """
    return per_example.geometric(class_accuracy(probabilities, labels))


def group_accuracy(probabilities: np.ndarray, labels: np.ndarray, members: np.ndarray) -> float:
    """Return the mean of the accuracies of the classes in a group.

    Args:
      probabilities: float[N, K].
      labels: int[N].
      members: bool[K], the classes of the group.

    Returns:
      A share in 0..1; nan for a group without examples.

    Raises:
      UserError: members are no bool[K], or arrays that are not predictions.

    >>> probabilities, labels = np.array([[0.7, 0.3], [0.6, 0.4], [0.1, 0.9], [0.2, 0.8]]), np.array([0, 1, 1, 1])
    >>> group_accuracy(probabilities, labels, np.array([True, False]))
    1.0
    """
    accuracies, members = class_accuracy(probabilities, labels), np.asarray(members)
    if members.dtype != bool or members.shape != accuracies.shape:
        raise UserError(
            f"members are {members.dtype}{list(members.shape)}; they must be bool[{len(accuracies)}], whether each "
            "class is of the group, such as priors.groups(counts)['few']"
        )
    return per_example.mean_of(accuracies, members)


class Bins(NamedTuple):
    """Examples in bins of confidence, which a reliability diagram shows."""

    edges: np.ndarray  # float64[bins + 1]
    count: np.ndarray  # int64[bins]
    confidence: np.ndarray  # float64[bins], mean; nan where empty
    accuracy: np.ndarray  # float64[bins], mean; nan where empty


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Bins:
    """Put the examples into equally wide bins (a, b] of confidence.

    A confidence of exactly 0 counts in the first bin, a confidence above 1 by rounding in the last.

    Args:
      probabilities: float[N, K].
      labels: int[N].
      bins: their number.

    Returns:
      The `Bins`.

    >>> probabilities, labels = np.array([[0.7, 0.3], [0.6, 0.4], [0.1, 0.9], [0.2, 0.8]]), np.array([0, 1, 1, 1])
    >>> reliability(probabilities, labels, bins=4).count.tolist()
    [0, 0, 2, 2]
    """
    confidence, hits = per_example.top_label(probabilities, labels)
    bin_index = per_example.bin_of(confidence, bins)
    count = np.bincount(bin_index, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(bin_index, weights=values, minlength=bins) / count for values in (confidence, hits)]
    return Bins(np.linspace(0, 1, bins + 1), count, *means)


@registry.percent(title="ECE", decimals=2, bins=True, raised_by_chance=True)
def ece(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Return the expected calibration error: |accuracy - confidence| of each bin, weighted by its examples.

    The bins are those of `reliability`.

    Args:
      probabilities: float[N, K].
      labels: int[N].
      bins: their number.

    Returns:
      An error in 0..1.

    Source: Eq. D.2 of the paper's supplement; Naeini et al., AAAI 2015.

    >>> probabilities, labels = np.array([[0.7, 0.3], [0.6, 0.4], [0.1, 0.9], [0.2, 0.8]]), np.array([0, 1, 1, 1])
    >>> round(ece(probabilities, labels), 3)
    0.3
    """
    return per_example.ece_of(*per_example.top_label(probabilities, labels), bins)


@registry.percent(title="MCE", bins=True, raised_by_chance=True, interval=False)
def mce(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Return the maximum calibration error: the largest |accuracy - confidence| over the bins of `ece`.

    It depends on the bins with the fewest examples; empty bins count 0.

    Args:
      probabilities: float[N, K].
      labels: int[N].
      bins: their number.

    Returns:
      An error in 0..1.

    Source: Eq. D.3 of the paper's supplement.

    >>> probabilities, labels = np.array([[0.7, 0.3], [0.6, 0.4], [0.1, 0.9], [0.2, 0.8]]), np.array([0, 1, 1, 1])
    >>> round(mce(probabilities, labels), 3)
    0.6
    """
    return per_example.mce_of(*per_example.top_label(probabilities, labels), bins)


@registry.percent(title="smooth ECE", decimals=2, raised_by_chance=True)
def smooth_ece(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the smooth calibration error of the confidence, which has no bins and no jumps at their edges.

    With hits h and confidences f, r(t) = mean of kernel(t, f) * (h - f) over the examples; the kernel is Gaussian with
    width s and reflected at 0 and 1. The error is the width s at which the integral of |r| equals s.

    Args:
      probabilities: float[N, K].
      labels: int[N].

    Returns:
      An error in 0..1.

    Source: Blasiok, Nakkiran, "Smooth ECE", ICLR 2024.

    >>> probabilities, labels = np.array([[0.7, 0.3], [0.6, 0.4], [0.1, 0.9], [0.2, 0.8]]), np.array([0, 1, 1, 1])
    >>> round(smooth_ece(probabilities, labels), 3)
    0.132
    """
    return per_example.smooth_ece_of(*per_example.top_label(probabilities, labels))


@registry.percent(title="Brier score, sum over classes", unit="x 100", decimals=2, highest=2.0)
def brier(probabilities: np.ndarray, labels: np.ndarray, normalize: bool = False) -> float:
    """Return the Brier score: the mean squared distance of the probabilities from the one-hot label.

    The sum over classes, in 0..2, is the scale of the paper's Table D1; its Eq. D.6 also divides by the number of
    classes.

    Args:
      probabilities: float[N, K].
      labels: int[N].
      normalize: whether to divide by K.

    Returns:
      A score in 0..2, or in 0..2/K if it is normalised.

    Source: Brier, 1950; Eq. D.6 of the paper's supplement.

    >>> probabilities, labels = np.array([[0.7, 0.3], [0.6, 0.4], [0.1, 0.9], [0.2, 0.8]]), np.array([0, 1, 1, 1])
    >>> brier(probabilities, labels)
    0.25
    """
    value = float(per_example.squared_distance(probabilities, labels).mean())
    return value / np.shape(probabilities)[1] if normalize else value


@registry.Measure(title="NLL", unit="nats", lowest=0.0)
def nll(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean negative log-likelihood in nats; a probability of 0 counts as the smallest positive float.

    Args:
      probabilities: float[N, K].
      labels: int[N].

    Returns:
      Nats, at least 0.

    >>> probabilities, labels = np.array([[0.7, 0.3], [0.6, 0.4], [0.1, 0.9], [0.2, 0.8]]), np.array([0, 1, 1, 1])
    >>> round(nll(probabilities, labels), 3)
    0.4
    """
    return float(per_example.surprise(probabilities, labels).mean())


def nll_of_logits(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return `nll` of softmax(logits), which is exact even if a probability would round to 0.

    Args:
      logits: float[N, K].
      labels: int[N].

    Returns:
      Nats, at least 0.

    >>> nll_of_logits(np.array([[0.0, 2000.0]]), np.array([0]))
    2000.0
    """
    return float(per_example.surprise_of_logits(logits, labels).mean())
