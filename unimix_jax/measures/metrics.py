"""Measures of probabilities against labels: numpy, float64, whoever made the predictions.

A measure is `(probabilities, labels, ...) -> float`, in fractions of 1 or in nats; `MEASURES` is the list.
Probabilities are float[N, K], K > 1, whose rows sum to 1 within 1e-5 and whose entries lie in 0..1 within 1e-6;
labels int[N], N > 0. Whatever the type of the input, sums are in float64; no measure copies the whole array.

Top-label measures (accuracy, ECE, MCE, smooth ECE) look at the most probable class and its probability, the
confidence; class-wise ones (class ECE, SCE, ACE, TACE) at the probability of every class.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from unimix_jax import batch, priors
from unimix_jax.batch import Predictions
from unimix_jax.errors import UserError, one_of

BINS = 15
THRESHOLD = 1e-3  # of TACE
WEIGHTINGS = ("count", "range")
_ROWS = 4096  # examples at once where a block of them is copied
_COLUMNS = 32  # classes at once


def softmax(logits: np.ndarray) -> np.ndarray:
    """Turn logits float[N, K] into probabilities float64[N, K]."""
    values = np.array(logits, np.float64)
    values -= values.max(axis=1, keepdims=True)
    np.exp(values, out=values)
    values /= values.sum(axis=1, keepdims=True)
    return values


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Turn logits float[N, K] into log probabilities float64[N, K]."""
    values = np.array(logits, np.float64)
    values -= values.max(axis=1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    return values


# --- Right or wrong


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Share of examples whose most probable class is the label (the first one of ties)."""
    _, hits = top_label(probabilities, labels)
    return float(hits.mean())


def top_accuracy(probabilities: np.ndarray, labels: np.ndarray, k: int = 5) -> float:
    """Share of examples whose label is among the k most probable classes (of ties the first ones)."""
    return float(top_hits(probabilities, labels, k).mean())


def class_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Accuracy on the examples of each class (its recall), float64[K]; nan for a class without examples."""
    _, hits = top_label(probabilities, labels)
    return class_means(hits, labels, np.shape(probabilities)[1])


def balanced_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean of the accuracies of the classes that have examples."""
    return float(np.nanmean(class_accuracy(probabilities, labels)))


def geometric_mean(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Geometric mean of the accuracies of the classes that have examples; 0 if one of them is never right."""
    return geometric(class_accuracy(probabilities, labels))


def group_accuracy(probabilities: np.ndarray, labels: np.ndarray, members: np.ndarray) -> float:
    """Mean of the accuracies of the classes in a group, bool[K]; nan for a group without examples."""
    return mean_of(class_accuracy(probabilities, labels), members)


# --- Confidence of the most probable class


class Bins(NamedTuple):
    """Examples by their confidence: what a reliability diagram shows."""

    edges: np.ndarray  # float64[bins + 1]
    count: np.ndarray  # int64[bins]
    confidence: np.ndarray  # float64[bins], mean; nan where empty
    accuracy: np.ndarray  # float64[bins], mean; nan where empty


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Bins:
    """Put the examples into equally wide bins (a, b] of confidence.

    A confidence of exactly 0 counts in the first bin, one above 1 by rounding in the last.
    """
    confidence, hits = top_label(probabilities, labels)
    place = bin_of(confidence, bins)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, weights=values, minlength=bins) / count for values in (confidence, hits)]
    return Bins(np.linspace(0, 1, bins + 1), count, *means)


def ece(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: |accuracy - confidence| of each bin, weighted by its examples.

    Bins are those of `reliability`.

    Source: Eq. D.2 of the paper's supplement; Naeini et al., AAAI 2015.
    """
    return ece_of(*top_label(probabilities, labels), bins)


def mce(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Maximum calibration error: the largest |accuracy - confidence| over the bins of `ece`.

    It hangs on the emptiest bins; empty ones count 0.

    Source: Eq. D.3 of the paper's supplement.
    """
    return mce_of(*top_label(probabilities, labels), bins)


def smooth_ece(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Smooth calibration error of the confidence: no bins, and so no jump where a confidence crosses an edge.

    With hits h and confidences f, r(t) = mean of kernel(t, f) * (h - f) over the examples, the kernel Gaussian of
    width s, reflected at 0 and 1; the error is the width s at which the integral of |r| is s itself.

    Source: Blasiok, Nakkiran, "Smooth ECE", ICLR 2024.
    """
    return smooth_ece_of(*top_label(probabilities, labels))


# --- Probabilities of all classes


def class_ece(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Calibration error of each class's probability, float64[K], over all examples.

    For class c: equally wide bins (a, b] of p_c, |share of label c - mean p_c| weighted by the bin's examples.
    A class without examples counts too: it must be given no probability.

    Source: one term of Eq. D.5 of the paper's supplement; class-wise ECE of Kull et al., NeurIPS 2019.
    """
    probabilities, labels = _checked(probabilities, labels)
    inner = np.linspace(0, 1, _at_least_one(bins) + 1)[1:-1]

    def edges(values):
        return np.concatenate([[0], np.searchsorted(values, inner, side="right"), [len(values)]])

    return np.array([np.abs(gaps).sum() for gaps, _ in _class_ranges(probabilities, labels, edges)]) / len(labels)


def sce(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Static calibration error: the mean of `class_ece` over the classes (also called class-wise ECE).

    Source: Eq. D.5 of the paper's supplement; Nixon et al., CVPR workshops 2019.
    """
    return float(class_ece(probabilities, labels, bins).mean())


def ace(probabilities: np.ndarray, labels: np.ndarray, ranges: int = BINS, weighting: str = "count") -> float:
    """Adaptive calibration error: `tace` with threshold 0."""
    return tace(probabilities, labels, ranges, 0.0, weighting)


def tace(
    probabilities: np.ndarray,
    labels: np.ndarray,
    ranges: int = BINS,
    threshold: float = THRESHOLD,
    weighting: str = "count",
) -> float:
    """Thresholded adaptive calibration error: ranges of equal count instead of bins of equal width.

    For class c: the probabilities p_c of at least `threshold`, sorted (ties in the order of the examples), are cut
    into ranges of equal count, the first ones longer by one where it does not come out even; |share of label c -
    mean p_c| of each range; mean over the classes. A class with no such probability counts 0.

    Args:
      probabilities, labels: see the module.
      ranges: R per class.
      threshold: the smallest probability that counts.
      weighting: of a range. "count": its share of all N examples, as in the paper's Table D1 (there TACE is now
        above, now below ACE; Eq. D.4 to the letter gives 3 to 20 times ACE for 100 classes). "range": 1/R, Eq. D.4 to
        the letter. For ACE the two differ by rounding of the counts only.

    Source: Eq. D.4 of the paper's supplement; Nixon et al., CVPR workshops 2019.
    """
    probabilities, labels = _checked(probabilities, labels)
    one_of("weighting of ranges", weighting, WEIGHTINGS)
    _at_least_one(ranges, "ranges")

    def edges(values):
        first = np.searchsorted(values, threshold, side="left")
        kept, rest = divmod(len(values) - first, ranges)
        lengths = np.full(ranges, kept) + (np.arange(ranges) < rest)
        return first + np.concatenate([[0], np.cumsum(lengths)])

    total = 0.0
    for gaps, sizes in _class_ranges(probabilities, labels, edges):
        weights = 1 / len(labels) if weighting == "count" else 1 / (ranges * np.maximum(sizes, 1))
        total += (np.abs(gaps) * weights).sum()
    return float(total / probabilities.shape[1])


def brier(probabilities: np.ndarray, labels: np.ndarray, normalize: bool = False) -> float:
    """Brier score: squared distance of the probabilities from the one-hot label, mean over the examples.

    The sum over classes, range 0..2, is what the paper's Table D1 shows; its Eq. D.6 divides by the number of
    classes as well.

    Args:
      probabilities, labels: see the module.
      normalize: divide by K.

    Source: Brier, 1950; Eq. D.6 of the paper's supplement.
    """
    value = float(squared_distance(probabilities, labels).mean())
    return value / np.shape(probabilities)[1] if normalize else value


def nll(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood in nats; a probability of 0 counts as the smallest positive float."""
    return float(surprise(probabilities, labels).mean())


def nll_of_logits(logits: np.ndarray, labels: np.ndarray) -> float:
    """`nll` of softmax(logits), exact where a probability would round to 0; logits float[N, K]."""
    return float(surprise_of_logits(logits, labels).mean())


MEASURES: dict[str, Callable[..., float]] = {
    "accuracy": accuracy,
    "top5": top_accuracy,
    "balanced_accuracy": balanced_accuracy,
    "geometric_mean": geometric_mean,
    "ece": ece,
    "smooth_ece": smooth_ece,
    "mce": mce,
    "sce": sce,
    "ace": ace,
    "tace": tace,
    "brier": brier,
    "nll": nll,
}
BINNED = ("ece", "mce", "sce", "ace", "tace")  # those that take a number of bins


def summary(predictions: Predictions, *, names=tuple(MEASURES), bins: int = BINS, by: str = "auto") -> dict:
    """Measure predictions: what `metrics.json` holds of one split.

    Args:
      predictions: logits and labels; with counts that differ, of three classes or more, also the groups of classes.
      names: which of `MEASURES`; top5 is left out where there are no more than five classes.
      bins: of the measures that have bins or ranges.
      by: how to group classes: "shots", "thirds", or "auto": by shots, or by thirds where the shot rule leaves a
        group empty.

    Returns:
      The measures, images, bins, class_accuracy and class_ece (lists), and with counts many, medium, few, groups
      ("shots" or "thirds"). What cannot be had (a class or group without images) is None.

    Raises:
      UserError: no labels, or arrays that are no predictions.
    """
    predictions = batch.checked(predictions)
    if predictions.labels is None:
        raise UserError("these predictions have no labels, so they cannot be measured")
    probabilities, labels = softmax(predictions.logits), predictions.labels
    num_classes = probabilities.shape[1]
    values: dict = {}
    for name in names:
        if name == "nll":
            values[name] = nll_of_logits(predictions.logits, labels)
        elif name != "top5" or num_classes > 5:
            options = {"ranges" if name in ("ace", "tace") else "bins": bins} if name in BINNED else {}
            values[name] = MEASURES[name](probabilities, labels, **options)
    values |= {"images": len(labels), "bins": bins}
    accuracies = class_accuracy(probabilities, labels)
    values["class_accuracy"] = [_none_if_nan(v) for v in accuracies]
    if "sce" in names:
        values["class_ece"] = class_ece(probabilities, labels, bins).tolist()
    counts = predictions.counts
    if counts is not None and num_classes > 2 and np.min(counts) < np.max(counts):
        values["groups"], groups = choose_groups(counts, by)
        values |= {g: _none_if_nan(mean_of(accuracies, members)) for g, members in groups.items()}
    return values


def choose_groups(counts: np.ndarray, by: str = "auto") -> tuple[str, dict[str, np.ndarray]]:
    """Return ("shots" or "thirds", groups); "auto" is shots, or thirds where that rule leaves a group empty."""
    if by != "auto":
        return by, priors.groups(counts, by)
    by_shots = priors.groups(counts, "shots")
    if all(members.any() for members in by_shots.values()):
        return "shots", by_shots
    return "thirds", priors.groups(counts, "thirds")


# --- Parts of measures, a value an example or a class: for intervals and pictures


def top_label(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the confidence float64[N] and whether the most probable class is the label, bool[N]."""
    probabilities, labels = _checked(probabilities, labels)
    chosen = probabilities.argmax(axis=1)
    return probabilities[np.arange(len(labels)), chosen].astype(np.float64), chosen == labels


def top_hits(probabilities: np.ndarray, labels: np.ndarray, k: int = 5) -> np.ndarray:
    """Whether the label is among the k most probable classes, bool[N]."""
    probabilities, labels = _checked(probabilities, labels)
    _at_least_one(k, "k")
    rank = np.empty(len(labels), np.int64)
    for start in range(0, len(labels), _ROWS):
        rows, true = probabilities[start : start + _ROWS], labels[start : start + _ROWS, None]
        own = np.take_along_axis(rows, true, axis=1)
        earlier = (rows == own) & (np.arange(rows.shape[1]) < true)
        rank[start : start + _ROWS] = ((rows > own) | earlier).sum(axis=1)
    return rank < k


def squared_distance(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Squared distance of each row from its one-hot label, float64[N]."""
    probabilities, labels = _checked(probabilities, labels)
    squares = np.einsum("nk,nk->n", probabilities, probabilities, dtype=np.float64)
    return squares - 2 * _of_label(probabilities, labels) + 1


def surprise(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-log of each label's probability in nats, float64[N]."""
    probabilities, labels = _checked(probabilities, labels)
    return -np.log(np.maximum(_of_label(probabilities, labels), np.finfo(np.float64).tiny))


def surprise_of_logits(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`surprise` of softmax(logits), exact where a probability would round to 0; logits float[N, K]."""
    logits = batch.checked_scores(logits, "logits")
    labels = batch.checked_labels(labels, logits.shape, "labels")
    values = np.empty(len(labels))
    for start in range(0, len(labels), _ROWS):
        rows = log_softmax(logits[start : start + _ROWS])
        values[start : start + _ROWS] = -rows[np.arange(len(rows)), labels[start : start + _ROWS]]
    return values


def class_means(values: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Mean of values[N] over the examples of each class, float64[K]; nan for a class without examples."""
    sizes = np.bincount(labels, minlength=num_classes)
    with np.errstate(invalid="ignore"):
        return np.bincount(labels, weights=values, minlength=num_classes) / sizes


def mean_of(values: np.ndarray, members: np.ndarray) -> float:
    """Mean of the values of a group that are not nan; nan if there are none."""
    values = values[members & ~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def geometric(values: np.ndarray) -> float:
    """Geometric mean of the values that are not nan."""
    with np.errstate(divide="ignore"):
        return float(np.exp(np.log(values[~np.isnan(values)]).mean()))


def bin_of(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """The bin (a, b] of each confidence, int[N]; what lies at or below 0 is in the first, above 1 in the last."""
    edges = np.linspace(0, 1, _at_least_one(bins) + 1)
    return np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)


def ece_of(confidence: np.ndarray, hits: np.ndarray, bins: int = BINS) -> float:
    """`ece` from confidences and hits."""
    return float(np.abs(_gaps(bin_of(confidence, bins), confidence, hits, bins)).sum() / len(hits))


def mce_of(confidence: np.ndarray, hits: np.ndarray, bins: int = BINS) -> float:
    """`mce` from confidences and hits."""
    place = bin_of(confidence, bins)
    sizes = np.maximum(np.bincount(place, minlength=bins), 1)
    return float((np.abs(_gaps(place, confidence, hits, bins)) / sizes).max())


def smooth_ece_of(confidence: np.ndarray, hits: np.ndarray) -> float:
    """`smooth_ece` from confidences and hits, on a grid of 1,024 cells: within 1e-4 of the integral."""
    cells = 1024
    # Each residual is shared between the two nearest cell centres; those outside of the last centres go there whole.
    place = np.clip(np.asarray(confidence, np.float64) * cells - 0.5, 0, cells - 1)
    left = np.minimum(place.astype(np.int64), cells - 2)
    share, residual = place - left, hits - confidence
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


def _gaps(place: np.ndarray, confidence: np.ndarray, hits: np.ndarray, bins: int) -> np.ndarray:
    """Sum of hits less sum of confidences in each bin, float64[bins]."""
    return np.bincount(place, weights=hits - confidence, minlength=bins)


def _class_ranges(probabilities, labels, edges: Callable) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each class: sum of (label is c) less sum of p_c in each range of its sorted values, and the ranges' sizes.

    Args:
      probabilities, labels: checked.
      edges: sorted float64[N] -> int[R + 1], where ranges begin and end, the last one at N.
    """
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels, minlength=probabilities.shape[1]))
    for c in range(probabilities.shape[1]):
        if c % _COLUMNS == 0:
            block = np.ascontiguousarray(probabilities[:, c : c + _COLUMNS].T, np.float64)
        column = block[c % _COLUMNS]
        values = np.sort(column)
        borders = edges(values)
        sizes = np.diff(borders)
        # Ranges that hold something end where the next of them begins.
        held = sizes > 0
        sums = np.zeros(len(sizes))
        if held.any():
            sums[held] = np.add.reduceat(values, borders[:-1][held])
        positives = order[ends[c - 1] if c else 0 : ends[c]]
        rank = _ranks(column, values, positives)
        inside = np.searchsorted(borders, rank, side="right") - 1
        found = np.bincount(inside[inside >= 0], minlength=len(sizes))
        yield found - sums, sizes


def _ranks(column: np.ndarray, values: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Places of some examples in the stable order of a column, given its sorted values: int[len(members)]."""
    own = column[members]
    rank = np.searchsorted(values, own, side="left")
    tied = np.searchsorted(values, own, side="right") - rank > 1
    for value in np.unique(own[tied]):
        same = own == value
        rank[same] += np.searchsorted(np.flatnonzero(column == value), members[same])
    return rank


def _of_label(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return probabilities[np.arange(len(labels)), labels].astype(np.float64)


def _at_least_one(number: int, what: str = "bins") -> int:
    if number < 1:
        raise UserError(f"{what} is {number}; there must be at least 1")
    return number


def _checked(probabilities, labels) -> tuple[np.ndarray, np.ndarray]:
    probabilities = batch.checked_scores(probabilities, "probabilities")
    labels = batch.checked_labels(labels, probabilities.shape, "labels")
    batch.check_probabilities(probabilities)
    return probabilities, labels


def _none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
