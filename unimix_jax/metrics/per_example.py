"""Values of each example, class or bin, from which measures, intervals and pictures are computed.

Probabilities and labels are as in `measures`; confidences and hits are those of `top_label`.
"""

import numpy as np
from numpy.typing import ArrayLike

from unimix_jax import priors
from unimix_jax.errors import UserError
from unimix_jax.metrics.predictions import (
    check_probabilities,
    checked_labels,
    checked_logits,
    checked_scores,
    refuse_probabilities,
)

BINS = 15
LEAST_SHARE = 1e-6  # of a class, times 1/K: a prior must be positive, so that logits can be shifted to it
_ROWS = 4096  # examples in a block, where blocks are copied


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of logits; refuse an array that looks like probabilities.

    Args:
      logits: float[N, K].

    Returns:
      float64[N, K].

    Raises:
      UserError: another shape, no numbers, or probabilities.

    >>> softmax(np.array([[0.0, 0.0, -np.inf]])).tolist()
    [[0.5, 0.5, 0.0]]
    """
    logits = priors.array_of(logits, "logits")
    if logits.ndim != 2 or logits.dtype.kind not in "fiu" or not logits.shape[1]:
        raise UserError(
            f"logits are {logits.dtype}{list(logits.shape)}; they must be numbers [N, K], a row an example: put other "
            "axes into the first one by logits.reshape(-1, K)"
        )
    values = np.array(logits, np.float64)
    refuse_probabilities(values, "logits")
    values -= values.max(axis=1, keepdims=True)
    np.exp(values, out=values)
    values /= values.sum(axis=1, keepdims=True)
    return values


def normalised(scores: np.ndarray) -> np.ndarray:
    """Return the log-softmax float64[N, K] of scores float[N, K], which may be any finite numbers."""
    values = np.array(scores, np.float64)
    values -= values.max(axis=1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    return values


def top_label(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the confidence float64[N] and whether the most probable class is the label, bool[N]."""
    probabilities, labels = checked(probabilities, labels)
    chosen = probabilities.argmax(axis=1)
    return probabilities[np.arange(len(labels)), chosen].astype(np.float64), chosen == labels


def top_hits(probabilities: np.ndarray, labels: np.ndarray, k: int = 5) -> np.ndarray:
    """Return whether the label is among the k most probable classes, bool[N]."""
    probabilities, labels = checked(probabilities, labels)
    at_least_one(k, "k")
    rank = np.empty(len(labels), np.int64)
    for start in range(0, len(labels), _ROWS):
        rows, true = probabilities[start : start + _ROWS], labels[start : start + _ROWS, None]
        own = np.take_along_axis(rows, true, axis=1)
        earlier = (rows == own) & (np.arange(rows.shape[1]) < true)
        rank[start : start + _ROWS] = ((rows > own) | earlier).sum(axis=1)
    return rank < k


def squared_distance(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the squared distance of each row from its one-hot label, float64[N]."""
    probabilities, labels = checked(probabilities, labels)
    squares = np.einsum("nk,nk->n", probabilities, probabilities, dtype=np.float64)
    return squares - 2 * of_label(probabilities, labels) + 1


def surprise(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return -log of each label's probability in nats, float64[N]."""
    probabilities, labels = checked(probabilities, labels)
    return -np.log(np.maximum(of_label(probabilities, labels), np.finfo(np.float64).tiny))


def surprise_of_logits(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return `surprise` of softmax(logits), float64[N], exact even if a probability would round to 0."""
    logits = checked_logits(logits, "logits")
    labels = checked_labels(labels, logits.shape, "labels")
    values = np.empty(len(labels))
    for start in range(0, len(labels), _ROWS):
        rows = normalised(logits[start : start + _ROWS])
        values[start : start + _ROWS] = -rows[np.arange(len(rows)), labels[start : start + _ROWS]]
    return values


def class_means(values: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the mean of values[N] over the examples of each class, float64[K]; nan for a class without examples."""
    sizes = np.bincount(labels, minlength=num_classes)
    with np.errstate(invalid="ignore"):
        return np.bincount(labels, weights=values, minlength=num_classes) / sizes


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the examples of each (label, predicted class), int64[K, K]."""
    cells = np.asarray(labels, np.int64) * num_classes + np.asarray(predicted)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def mean_of(values: np.ndarray, members: np.ndarray) -> float:
    """Return the mean of the values of a group that are not nan; nan if there are none."""
    values = values[members & ~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def geometric(values: np.ndarray) -> float:
    """Return the geometric mean of the values that are not nan."""
    with np.errstate(divide="ignore"):
        return float(np.exp(np.log(values[~np.isnan(values)]).mean()))


def bin_of(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Return the bin (a, b] of each confidence, int[N]; 0 counts in the first bin, more than 1 in the last."""
    edges = np.linspace(0, 1, at_least_one(bins) + 1)
    return np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)


def ece_of(confidence: np.ndarray, hits: np.ndarray, bins: int = BINS) -> float:
    """Return `measures.ece` from confidences and hits."""
    return float(np.abs(_gaps(bin_of(confidence, bins), confidence, hits, bins)).sum() / len(hits))


def mce_of(confidence: np.ndarray, hits: np.ndarray, bins: int = BINS) -> float:
    """Return `measures.mce` from confidences and hits."""
    bin_index = bin_of(confidence, bins)
    sizes = np.maximum(np.bincount(bin_index, minlength=bins), 1)
    return float((np.abs(_gaps(bin_index, confidence, hits, bins)) / sizes).max())


def smooth_ece_of(confidence: np.ndarray, hits: np.ndarray) -> float:
    """Return `measures.smooth_ece` from confidences and hits, on a grid of 1,024 cells, within 1e-4 of the integral."""
    cells = 1024
    # Each residual is shared between the two nearest cell centres; those outside of the last centres go there whole.
    bin_index = np.clip(np.asarray(confidence, np.float64) * cells - 0.5, 0, cells - 1)
    left = np.minimum(bin_index.astype(np.int64), cells - 2)
    share, residual = bin_index - left, hits - confidence
    density = np.bincount(left, weights=(1 - share) * residual, minlength=cells)
    density += np.bincount(left + 1, weights=share * residual, minlength=cells)
    # On the even extension, a Gaussian reflected at both ends is a product in Fourier space.
    spectrum = np.fft.rfft(np.concatenate([density, density[::-1]])) / len(hits)
    decay = -0.5 * (np.pi * np.arange(cells + 1)) ** 2

    def at(width):
        return np.abs(np.fft.irfft(spectrum * np.exp(decay * width**2))[:cells]).sum()

    low, high = 0.0, 1.0  # at(s) falls with s, so that it meets s once
    while high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle) > middle else (low, middle)
    return (low + high) / 2


def _gaps(bin_index: np.ndarray, confidence: np.ndarray, hits: np.ndarray, bins: int) -> np.ndarray:
    """Return the sum of hits minus the sum of confidences of each bin, float64[bins]."""
    return np.bincount(bin_index, weights=hits - confidence, minlength=bins)


def of_label(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the probability of each example's label, float64[N]."""
    return probabilities[np.arange(len(labels)), labels].astype(np.float64)


def at_least_one(number: int, what: str = "bins") -> int:
    """Return a number of bins; raise a UserError if it is no whole number, or below 1."""
    return priors.whole_number(number, what, least=1)


def checked(probabilities: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities float[N, K] and labels int64[N] after the checks of `predictions`."""
    probabilities = checked_scores(probabilities, "probabilities")
    labels = checked_labels(labels, probabilities.shape, "labels")
    check_probabilities(probabilities)
    return probabilities, labels


def mean_shares(probabilities: np.ndarray) -> np.ndarray:
    """Return the mean of float64[N, K] probabilities, float64[K], with a floor for a class that has none at all."""
    return np.maximum(probabilities.mean(axis=0), LEAST_SHARE / probabilities.shape[1])
