"""Calibration errors of the probability of every class: class-wise ECE, SCE, ACE and TACE."""

from collections.abc import Callable, Iterator

import numpy as np

from unimix_jax import registry
from unimix_jax.errors import one_of
from unimix_jax.metrics import per_example
from unimix_jax.metrics.per_example import BINS

THRESHOLD = 1e-3  # of TACE


WEIGHTINGS = ("count", "range")


_COLUMNS = 32  # classes at once


def class_ece(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Return the calibration error of each class's probability over all examples.

    For class c the bins (a, b] of p_c have equal width, and |share of label c - mean p_c| of each bin is weighted by
    its examples. A class without examples counts too: its probabilities should be 0.

    Args:
      probabilities: float[N, K].
      labels: int[N].
      bins: their number.

    Returns:
      float64[K], errors in 0..1.

    Source: one term of Eq. D.5 of the paper's supplement; class-wise ECE of Kull et al., NeurIPS 2019.

    >>> probabilities, labels = np.array([[0.7, 0.3], [0.6, 0.4], [0.1, 0.9], [0.2, 0.8]]), np.array([0, 1, 1, 1])
    >>> class_ece(probabilities, labels).round(3).tolist()
    [0.3, 0.3]
    """
    probabilities, labels = per_example.checked(probabilities, labels)
    ranges = _class_ranges(probabilities, labels, [_equal_widths(bins)])
    return np.array([np.abs(gaps).sum() for ((gaps, _),) in ranges]) / len(labels)


@registry.percent(title="SCE (class-wise ECE)", decimals=3, classwise=True)
def sce(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Return the static calibration error: the mean of `class_ece` over the classes, also called class-wise ECE.

    Args:
      probabilities: float[N, K].
      labels: int[N].
      bins: their number.

    Returns:
      An error in 0..1.

    Source: Eq. D.5 of the paper's supplement; Nixon et al., CVPR workshops 2019.

    >>> probabilities, labels = np.array([[0.7, 0.3], [0.6, 0.4], [0.1, 0.9], [0.2, 0.8]]), np.array([0, 1, 1, 1])
    >>> round(sce(probabilities, labels), 3)
    0.3
    """
    return float(class_ece(probabilities, labels, bins).mean())


@registry.percent(title="ACE", decimals=3, classwise=True)
def ace(probabilities: np.ndarray, labels: np.ndarray, ranges: int = BINS, weighting: str = "count") -> float:
    """Return the adaptive calibration error: `tace` with threshold 0.

    Args:
      probabilities: float[N, K].
      labels: int[N].
      ranges: their number for each class.
      weighting: see `tace`.

    Returns:
      An error in 0..1.

    Source: Nixon et al., CVPR workshops 2019.

    >>> probabilities, labels = np.array([[0.7, 0.3], [0.6, 0.4], [0.1, 0.9], [0.2, 0.8]]), np.array([0, 1, 1, 1])
    >>> round(ace(probabilities, labels, ranges=2), 3)
    0.15
    """
    return tace(probabilities, labels, ranges, 0.0, weighting)


@registry.percent(title="TACE", decimals=3, classwise=True)
def tace(
    probabilities: np.ndarray,
    labels: np.ndarray,
    ranges: int = BINS,
    threshold: float = THRESHOLD,
    weighting: str = "count",
) -> float:
    """Return the thresholded adaptive calibration error: ranges of equal count instead of bins of equal width.

    For class c the probabilities p_c of at least `threshold` are sorted and divided into ranges of equal count (the
    first ranges have one more if the number is not divisible). The error is the mean over the classes of the weighted
    |share of label c - mean p_c| of each range. A class without such a probability counts 0. If equal probabilities
    fall into two ranges, the labels c among them are divided between both in proportion, so that the order of the
    examples does not matter.

    Args:
      probabilities: float[N, K].
      labels: int[N].
      ranges: R, their number for each class.
      threshold: the smallest probability that counts.
      weighting: of a range. "count": its share of all N examples, as in the paper's Table D1 (there TACE is now
        above, now below ACE; Eq. D.4 to the letter gives 3 to 20 times ACE for 100 classes). "range": 1/R, Eq. D.4 to
        the letter. For ACE the two differ by rounding of the counts only.

    Returns:
      An error in 0..1.

    Source: Eq. D.4 of the paper's supplement; Nixon et al., CVPR workshops 2019.

    >>> probabilities, labels = np.array([[0.7, 0.3], [0.6, 0.4], [0.1, 0.9], [0.2, 0.8]]), np.array([0, 1, 1, 1])
    >>> round(tace(probabilities, labels, threshold=0.25), 3)
    0.262
    """
    probabilities, labels = per_example.checked(probabilities, labels)
    one_of("weighting of ranges", weighting, WEIGHTINGS)
    total = 0.0
    for ((gaps, sizes),) in _class_ranges(probabilities, labels, [_equal_counts(ranges, threshold)]):
        weights = 1 / len(labels) if weighting == "count" else 1 / (ranges * np.maximum(sizes, 1))
        total += (np.abs(gaps) * weights).sum()
    return float(total / probabilities.shape[1])


def classwise_errors(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> tuple[dict, np.ndarray]:
    """Compute SCE, ACE, TACE and `class_ece` in one pass over the sorted columns.

    Args:
      probabilities: float[N, K].
      labels: int[N].
      bins: number of bins or ranges.

    Returns:
      {"sce": ..., "ace": ..., "tace": ...} and `class_ece` float64[K].

    >>> probabilities, labels = np.array([[0.7, 0.3], [0.6, 0.4], [0.1, 0.9], [0.2, 0.8]]), np.array([0, 1, 1, 1])
    >>> classwise_errors(probabilities, labels)[1].round(3).tolist()
    [0.3, 0.3]
    """
    probabilities, labels = per_example.checked(probabilities, labels)
    edges = [_equal_widths(bins), _equal_counts(bins, 0.0), _equal_counts(bins, THRESHOLD)]
    ranges = _class_ranges(probabilities, labels, edges)
    gaps = np.array([[np.abs(gaps).sum() for gaps, _ in of_class] for of_class in ranges]) / len(labels)
    return {name: float(gaps[:, i].mean()) for i, name in enumerate(("sce", "ace", "tace"))}, gaps[:, 0]


def _equal_widths(bins: int) -> Callable:
    """Return a function of sorted probabilities float64[N] that gives the edges of equally wide bins, int[bins + 1]."""
    inner = np.linspace(0, 1, per_example.at_least_one(bins) + 1)[1:-1]
    return lambda values: np.concatenate([[0], np.searchsorted(values, inner, side="right"), [len(values)]])


def _equal_counts(ranges: int, threshold: float) -> Callable:
    """Edges of ranges of equal count in the sorted probabilities from `threshold` on."""
    per_example.at_least_one(ranges, "ranges")

    def edges(values):
        first = np.searchsorted(values, threshold, side="left")
        kept, rest = divmod(len(values) - first, ranges)
        lengths = np.full(ranges, kept) + (np.arange(ranges) < rest)
        return first + np.concatenate([[0], np.cumsum(lengths)])

    return edges


def _class_ranges(probabilities, labels, edges: list[Callable]) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """Yield for each class, and each way to divide: sum of (label is c) - sum of p_c by range, and the ranges' sizes.

    Args:
      probabilities: float[N, K], checked.
      labels: int[N], checked.
      edges: functions sorted float64[N] -> int[R + 1] that return where ranges begin and end, the last one at N.

    Yields:
      For each class a list with (float64[R], int[R]) for each function of `edges`.
    """
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels, minlength=probabilities.shape[1]))
    for c in range(probabilities.shape[1]):
        if c % _COLUMNS == 0:
            block = np.ascontiguousarray(probabilities[:, c : c + _COLUMNS].T, np.float64)
        column = block[c % _COLUMNS]
        values = np.sort(column)
        own = np.sort(column[order[ends[c - 1] if c else 0 : ends[c]]])
        yield [_range_gaps(values, own, borders(values)) for borders in edges]


def _range_gaps(values: np.ndarray, own: np.ndarray, borders: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return members minus sum of values of each range, and the ranges' sizes; `own` are the members' sorted values."""
    sizes = np.diff(borders)
    filled, sums = sizes > 0, np.zeros(len(sizes))  # ranges that hold something end where the next of them begins
    if filled.any():
        sums[filled] = np.add.reduceat(values, borders[:-1][filled])
    # Members before each border; of values that are tied across it the part that lies before it.
    at = values[np.minimum(borders, len(values) - 1)]
    first, last = (np.searchsorted(values, at, side=side) for side in ("left", "right"))
    below, upto = (np.searchsorted(own, at, side=side) for side in ("left", "right"))
    before = below + (borders - first) / (last - first) * (upto - below)
    return np.diff(before) - sums, sizes
