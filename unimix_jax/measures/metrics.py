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
from unimix_jax.measures import parts
from unimix_jax.measures.parts import BINS

THRESHOLD = 1e-3  # of TACE
WEIGHTINGS = ("count", "range")
_COLUMNS = 32  # classes at once


# --- Right or wrong


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Share of examples whose most probable class is the label (the first one of ties)."""
    _, hits = parts.top_label(probabilities, labels)
    return float(hits.mean())


def top_accuracy(probabilities: np.ndarray, labels: np.ndarray, k: int = 5) -> float:
    """Share of examples whose label is among the k most probable classes (of ties the first ones)."""
    return float(parts.top_hits(probabilities, labels, k).mean())


def class_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Accuracy on the examples of each class (its recall), float64[K]; nan for a class without examples."""
    _, hits = parts.top_label(probabilities, labels)
    return parts.class_means(hits, labels, np.shape(probabilities)[1])


def balanced_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean of the accuracies of the classes that have examples."""
    return float(np.nanmean(class_accuracy(probabilities, labels)))


def geometric_mean(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Geometric mean of the accuracies of the classes that have examples; 0 if one of them is never right."""
    return parts.geometric(class_accuracy(probabilities, labels))


def group_accuracy(probabilities: np.ndarray, labels: np.ndarray, members: np.ndarray) -> float:
    """Mean of the accuracies of the classes in a group, bool[K]; nan for a group without examples."""
    return parts.mean_of(class_accuracy(probabilities, labels), members)


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
    confidence, hits = parts.top_label(probabilities, labels)
    place = parts.bin_of(confidence, bins)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, weights=values, minlength=bins) / count for values in (confidence, hits)]
    return Bins(np.linspace(0, 1, bins + 1), count, *means)


def ece(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: |accuracy - confidence| of each bin, weighted by its examples.

    Bins are those of `reliability`.

    Source: Eq. D.2 of the paper's supplement; Naeini et al., AAAI 2015.
    """
    return parts.ece_of(*parts.top_label(probabilities, labels), bins)


def mce(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Maximum calibration error: the largest |accuracy - confidence| over the bins of `ece`.

    It hangs on the emptiest bins; empty ones count 0.

    Source: Eq. D.3 of the paper's supplement.
    """
    return parts.mce_of(*parts.top_label(probabilities, labels), bins)


def smooth_ece(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Smooth calibration error of the confidence: no bins, and so no jump where a confidence crosses an edge.

    With hits h and confidences f, r(t) = mean of kernel(t, f) * (h - f) over the examples, the kernel Gaussian of
    width s, reflected at 0 and 1; the error is the width s at which the integral of |r| is s itself.

    Source: Blasiok, Nakkiran, "Smooth ECE", ICLR 2024.
    """
    return parts.smooth_ece_of(*parts.top_label(probabilities, labels))


# --- Probabilities of all classes


def class_ece(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Calibration error of each class's probability, float64[K], over all examples.

    For class c: equally wide bins (a, b] of p_c, |share of label c - mean p_c| weighted by the bin's examples.
    A class without examples counts too: it must be given no probability.

    Source: one term of Eq. D.5 of the paper's supplement; class-wise ECE of Kull et al., NeurIPS 2019.
    """
    probabilities, labels = parts.checked(probabilities, labels)
    ranges = _class_ranges(probabilities, labels, [_equal_widths(bins)])
    return np.array([np.abs(gaps).sum() for ((gaps, _),) in ranges]) / len(labels)


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

    For class c: the probabilities p_c of at least `threshold`, sorted, are cut into ranges of equal count, the first
    ones longer by one where it does not come out even; |share of label c - mean p_c| of each range; mean over the
    classes. A class with no such probability counts 0. Where a cut goes through equal probabilities, the labels c among
    them are shared out to both sides in the proportion of their numbers, so that the order of the examples does not
    matter.

    Args:
      probabilities, labels: see the module.
      ranges: R per class.
      threshold: the smallest probability that counts.
      weighting: of a range. "count": its share of all N examples, as in the paper's Table D1 (there TACE is now
        above, now below ACE; Eq. D.4 to the letter gives 3 to 20 times ACE for 100 classes). "range": 1/R, Eq. D.4 to
        the letter. For ACE the two differ by rounding of the counts only.

    Source: Eq. D.4 of the paper's supplement; Nixon et al., CVPR workshops 2019.
    """
    probabilities, labels = parts.checked(probabilities, labels)
    one_of("weighting of ranges", weighting, WEIGHTINGS)
    total = 0.0
    for ((gaps, sizes),) in _class_ranges(probabilities, labels, [_equal_counts(ranges, threshold)]):
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
    value = float(parts.squared_distance(probabilities, labels).mean())
    return value / np.shape(probabilities)[1] if normalize else value


def nll(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood in nats; a probability of 0 counts as the smallest positive float."""
    return float(parts.surprise(probabilities, labels).mean())


def nll_of_logits(logits: np.ndarray, labels: np.ndarray) -> float:
    """`nll` of parts.softmax(logits), exact where a probability would round to 0; logits float[N, K]."""
    return float(parts.surprise_of_logits(logits, labels).mean())


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
CLASSWISE = ("sce", "ace", "tace")  # those that look at the probability of every class


def measured(names: tuple[str, ...], probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> dict:
    """Return measures of `MEASURES` by name, with a number of bins or ranges where they have some.

    With SCE, ACE or TACE comes `class_ece`, float64[K]; all of them look at the sorted columns once, together.

    Raises:
      UserError: an unknown name, or arrays that are no predictions.
    """
    values = {}
    for name in names:
        options = {"bins": bins} if name in ("ece", "mce") else {}
        if one_of("measure", name, MEASURES) not in CLASSWISE:
            values[name] = MEASURES[name](probabilities, labels, **options)
    if set(names) & set(CLASSWISE):
        probabilities, labels = parts.checked(probabilities, labels)
        edges = [_equal_widths(bins), _equal_counts(bins, 0.0), _equal_counts(bins, THRESHOLD)]
        ranges = _class_ranges(probabilities, labels, edges)
        gaps = np.array([[np.abs(gaps).sum() for gaps, _ in of_class] for of_class in ranges]) / len(labels)
        values |= {name: float(gaps[:, i].mean()) for i, name in enumerate(CLASSWISE) if name in names}
        values["class_ece"] = gaps[:, 0]
    return values


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
      ("shots" or "thirds"). What cannot be had (a class or group without images) is None. other_prior: a sentence,
      where the logits stand for a prior that the labels do not have.

    Raises:
      UserError: no labels, or arrays that are no predictions.
    """
    predictions = batch.checked(predictions)
    if predictions.labels is None:
        raise UserError("these predictions have no labels, so they cannot be measured")
    probabilities, labels = parts.softmax(predictions.logits), predictions.labels
    num_classes = probabilities.shape[1]
    shown = tuple(name for name in names if name != "nll" and (name != "top5" or num_classes > 5))
    values = measured(shown, probabilities, labels, bins)
    if "nll" in names:
        values["nll"] = nll_of_logits(predictions.logits, labels)
    values |= {"images": len(labels), "bins": bins}
    accuracies = class_accuracy(probabilities, labels)
    values["class_accuracy"] = [_none_if_nan(v) for v in accuracies]
    if "class_ece" in values:
        values["class_ece"] = values["class_ece"].tolist()
    if chosen := choose_groups(predictions.counts, by):
        values["groups"], groups = chosen
        values |= {group: _none_if_nan(parts.mean_of(accuracies, members)) for group, members in groups.items()}
    if sentence := _other_prior(predictions):
        values["other_prior"] = sentence
    return values


def _other_prior(predictions: Predictions) -> str:
    """Say if the logits stand for other shares of the classes than the labels have, by more than by chance."""
    prior = predictions.logits_prior
    if prior is None:
        return ""
    share = np.bincount(predictions.labels, minlength=len(prior)) / len(predictions.labels)
    distance = np.abs(prior - share).sum() / 2
    # The mean distance of the shares of so many labels drawn by the prior.
    chance = np.sqrt(2 / np.pi * prior * (1 - prior) / len(predictions.labels)).sum() / 2
    if distance <= 2 * chance + 0.02:
        return ""
    which, counts = "another prior than these images have", predictions.counts
    if np.ptp(prior) < 1e-6:
        which = "a uniform prior, and these images have another one"
    elif counts is not None and np.abs(priors.prior(counts) - prior).max() < 1e-6:
        which = "the training images' prior, and these images have another one"
    most = int(np.abs(prior - share).argmax())
    name = predictions.class_names[most] if predictions.class_names else most
    return (
        f"the logits stand for {which}: {100 * distance:.0f} % of the shares differ, most in class {name}, "
        f"{100 * prior[most]:.1f} % against {100 * share[most]:.1f} %; the measures are those of the logits as they "
        "are, and --test_prior of evaluate corrects them"
    )


def choose_groups(counts: np.ndarray | None, by: str = "auto") -> tuple[str, dict[str, np.ndarray]] | None:
    """Return ("shots" or "thirds", groups); None where there are none: fewer than three classes, or equal counts.

    "auto" is shots, or thirds where that rule leaves a group empty.
    """
    if counts is None or len(counts) < 3 or np.min(counts) == np.max(counts):
        return None
    if by != "auto":
        return by, priors.groups(counts, by)
    by_shots = priors.groups(counts, "shots")
    if all(members.any() for members in by_shots.values()):
        return "shots", by_shots
    return "thirds", priors.groups(counts, "thirds")


def _equal_widths(bins: int) -> Callable:
    """Edges of equally wide bins (a, b] in sorted probabilities: (sorted float64[N]) -> int[bins + 1]."""
    inner = np.linspace(0, 1, parts.at_least_one(bins) + 1)[1:-1]
    return lambda values: np.concatenate([[0], np.searchsorted(values, inner, side="right"), [len(values)]])


def _equal_counts(ranges: int, threshold: float) -> Callable:
    """Edges of ranges of equal count in the sorted probabilities from `threshold` on."""
    parts.at_least_one(ranges, "ranges")

    def edges(values):
        first = np.searchsorted(values, threshold, side="left")
        kept, rest = divmod(len(values) - first, ranges)
        lengths = np.full(ranges, kept) + (np.arange(ranges) < rest)
        return first + np.concatenate([[0], np.cumsum(lengths)])

    return edges


def _class_ranges(probabilities, labels, edges: list[Callable]) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """Of each class, for each way to cut: sum of (label is c) less sum of p_c in each range, and the ranges' sizes.

    Args:
      probabilities, labels: checked.
      edges: functions sorted float64[N] -> int[R + 1], where ranges begin and end, the last one at N.
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
    """Number of members less sum of values in each range, and the ranges' sizes; own: the members' sorted values."""
    sizes = np.diff(borders)
    held, sums = sizes > 0, np.zeros(len(sizes))  # ranges that hold something end where the next of them begins
    if held.any():
        sums[held] = np.add.reduceat(values, borders[:-1][held])
    # Members before each border; of values that are tied across it the part that lies before it.
    at = values[np.minimum(borders, len(values) - 1)]
    first, last = (np.searchsorted(values, at, side=side) for side in ("left", "right"))
    below, upto = (np.searchsorted(own, at, side=side) for side in ("left", "right"))
    before = below + (borders - first) / (last - first) * (upto - below)
    return np.diff(before) - sums, sizes


def _none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
