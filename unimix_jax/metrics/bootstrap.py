"""Intervals of measures, mostly by the bootstrap: how much a value depends on the sample of test images."""

import logging
import statistics
from collections.abc import Callable

import numpy as np

from unimix_jax import priors
from unimix_jax.errors import UserError, one_of
from unimix_jax.metrics import per_example
from unimix_jax.metrics.per_example import BINS
from unimix_jax.metrics.predictions import Predictions, checked_predictions
from unimix_jax.metrics.summaries import MEASURES, choose_groups, measured, traits_of

_log = logging.getLogger(__name__)

SAMPLES = 1000
LEVEL = 0.95
ALL = tuple(name for name, measure in MEASURES.items() if measure.traits.interval)
# Each sample of the class-wise measures costs a whole measurement.
DEFAULT = tuple(name for name in ALL if not MEASURES[name].traits.classwise)
# Errors that chance makes larger; their intervals allow for it.
CALIBRATION = tuple(name for name in ALL if MEASURES[name].traits.raised_by_chance)
_SCALES = np.linspace(0, 2, 9)  # of the gaps between accuracy and confidence that are tried out


def bootstrap(
    predictions: Predictions,
    *,
    names: tuple[str, ...] = DEFAULT,
    samples: int = SAMPLES,
    level: float = LEVEL,
    seed: int = 0,
    bins: int = BINS,
    by: str = "auto",
) -> dict[str, tuple[float, float]]:
    """Return an interval of each measure, in which its value on endless examples of the same kind lies.

    The examples are drawn again with replacement. The quantiles of the measure over the samples, less their mean,
    are laid around its value on the examples as they are.

    ECE and smooth ECE lie above their values on endless examples, for chance moves bins away from their confidence, see
    `by_chance`. Their intervals are the errors under which a value as this one is not unlikely: see
    `_calibration_intervals`. They reach to 0 where the value can be chance, and always hold the value itself. SCE, ACE
    and TACE have the same bias, and their intervals do not allow for it: with few examples a class they lie too high.

    MCE has no interval. It is the error of one bin, which has very few examples if the model is sharp: another sample
    shows another bin, and so few examples do not determine its error. Intervals like those of ECE held the MCE of
    endless examples in 10 to 69 % of the samples of such models.

    Args:
      predictions: logits and labels; with counts that differ, also the groups of `metrics.summary`.
      names: of `ALL`; by default without the class-wise SCE, ACE and TACE, whose samples are slow.
      samples: how many times.
      level: of the interval.
      seed: of the draws.
      bins: see `metrics.summary`.
      by: see `metrics.summary`.

    Returns:
      {name: (low, high)}, within the measure's range; many, medium and few as well where there are groups (not for
      one without examples).

    Raises:
      UserError: predictions without labels, an unknown measure, one without an interval, or wrong samples or level.

    >>> logits, labels = np.log([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]] * 20), np.array([0, 1, 0] * 20)
    >>> low, high = bootstrap(Predictions(logits, labels), names=("accuracy",), samples=100)["accuracy"]
    >>> 0.5 < low < 2 / 3 < high < 0.8
    True
    """
    predictions = checked_predictions(predictions)
    if predictions.labels is None:
        raise UserError("these predictions have no labels, so they cannot be measured")
    if samples < 2 or not 0 < level < 1:
        raise UserError(f"a bootstrap of {samples} samples at level {level:g}: give at least 2, and a level in 0..1")
    labels, num_classes = predictions.labels, predictions.logits.shape[1]
    if "mce" in names:
        raise UserError("MCE has no bootstrap interval, because it depends on the few examples of one bin; ECE has one")
    names = tuple(name if ":" in name else one_of("measure", name, ALL) for name in names)
    measures = _measures(predictions, tuple(name for name in names if name not in CALIBRATION), bins, by)
    random = np.random.Generator(np.random.Philox(key=seed))
    everything = np.arange(len(labels))
    values = {name: measure(everything) for name, measure in measures.items()}
    drawn = np.empty((samples, len(measures)))
    for row in drawn:
        index = random.integers(len(labels), size=len(labels))
        row[:] = [measure(index) for measure in measures.values()]
    tail = 50 * (1 - level)
    result = {}
    if errors := tuple(name for name in names if name in CALIBRATION):
        top = per_example.top_label(per_example.softmax(predictions.logits), labels)
        result = _calibration_intervals(*top, errors, samples, level, random, bins)
    for (name, value), column in zip(values.items(), drawn.T, strict=True):
        column = column[~np.isnan(column)]  # a group of rare classes can be missing from a sample
        if ":" in name and len(column) < samples:
            missing = f"{samples - len(column)} of {samples}"
            _log.warning("%s has no value on %s samples of the bootstrap; its interval is of the others", name, missing)
        traits = None if name in priors.GROUPS else traits_of(name)
        if len(column) and not np.isnan(value) and num_classes > (traits.more_classes_than if traits else 1):
            low, high = value + np.percentile(column, [tail, 100 - tail]) - column.mean()
            lowest, highest = (traits.lowest, traits.highest) if traits else (0.0, 1.0)
            result[name] = (float(max(low, lowest)), float(min(high, highest)))
    return result


def expected_if_calibrated(predictions: Predictions, *, samples: int = 200, seed: int = 0, bins: int = BINS) -> dict:
    """Return the mean ECE, smooth ECE and MCE of a perfectly calibrated model with these confidences.

    None of the three is 0: in bins of few images the accuracy differs from the confidence by chance. Hits are drawn
    with the confidences as probabilities.

    Args:
      predictions: with logits.
      samples: number of draws.
      seed: of the draws.
      bins: of ECE and MCE.

    Returns:
      {"ece": ..., "smooth_ece": ..., "mce": ...}.

    Source: consistency resampling, Broecker and Smith, Weather and Forecasting 2007.

    >>> logits = np.log([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]] * 20)
    >>> 0.02 < expected_if_calibrated(Predictions(logits))["ece"] < 0.15
    True
    """
    confidence = np.minimum(per_example.softmax(checked_predictions(predictions).logits).max(axis=1), 1.0)
    random = np.random.Generator(np.random.Philox(key=seed))
    measures = _of_top_label(bins)
    drawn = np.empty((samples, len(measures)))
    for row in drawn:
        hits = random.random(len(confidence)) < confidence
        row[:] = [measure(confidence, hits) for measure in measures.values()]
    return dict(zip(measures, drawn.mean(axis=0).tolist(), strict=True))


def _calibration_intervals(
    confidence: np.ndarray,
    hits: np.ndarray,
    names: tuple[str, ...],
    samples: int,
    level: float,
    random: np.random.Generator,
    bins: int,
) -> dict[str, tuple[float, float]]:
    """Find intervals of calibration errors on endless examples: the errors that explain the observed values.

    The candidates are models whose accuracy differs from the confidence by s times the observed gap of each bin, with s
    from 0 (calibrated) to 2. For each s the error on endless examples is known, and examples are drawn with their hits:
    an error is in the interval if the observed value lies within the Gaussian quantiles of the values drawn under it.

    Returns:
      {name: (low, high)}.
    """
    size, bin_index = len(hits), per_example.bin_of(confidence, bins)
    sizes = np.maximum(np.bincount(bin_index, minlength=bins), 1)
    gaps = (np.bincount(bin_index, weights=hits - confidence, minlength=bins) / sizes)[bin_index]
    accuracies = [np.clip(confidence + scale * gaps, 0, 1) for scale in _SCALES]
    measures = {name: measure for name, measure in _of_top_label(bins).items() if name in names}
    drawn = np.empty((max(samples // (len(_SCALES) - 1), 20), len(_SCALES), len(measures)))
    for of_sample in drawn:
        # The same draws for each s, so that what is drawn grows with it.
        index, level_of_hit = random.integers(size, size=size), random.random(size)
        for row, accuracy in zip(of_sample, accuracies, strict=True):
            drawn_hits = level_of_hit < accuracy[index]
            row[:] = [measure(confidence[index], drawn_hits) for measure in measures.values()]
    half = statistics.NormalDist().inv_cdf((1 + level) / 2) * drawn.std(axis=0)
    low, high = drawn.mean(axis=0) - half, drawn.mean(axis=0) + half
    fine = np.linspace(_SCALES[0], _SCALES[-1], 401)
    ends_by_name = {}
    for i, (name, measure) in enumerate(measures.items()):
        value = measure(confidence, hits)
        limits = np.interp(fine, _SCALES, [measure(confidence, accuracy) for accuracy in accuracies])
        likely = np.interp(fine, _SCALES, low[:, i]) <= value, value <= np.interp(fine, _SCALES, high[:, i])
        ends = limits[likely[0] & likely[1]]
        ends_by_name[name] = (min([value, *ends]), min(max([value, *ends]), 1.0))
    return {name: (float(low), float(high)) for name, (low, high) in ends_by_name.items()}


def _of_top_label(bins: int) -> dict[str, Callable]:
    """Return the calibration errors as functions of confidences and hits."""
    return {
        "ece": lambda confidence, hits: per_example.ece_of(confidence, hits, bins),
        "smooth_ece": per_example.smooth_ece_of,
        "mce": lambda confidence, hits: per_example.mce_of(confidence, hits, bins),
    }


def _measures(
    predictions: Predictions, names: tuple[str, ...], bins: int, by: str
) -> dict[str, Callable[[np.ndarray], float]]:
    """Return each measure as a function of the positions of examples; values of examples are computed once."""
    probabilities, labels = per_example.softmax(predictions.logits), predictions.labels
    num_classes = probabilities.shape[1]
    _, hits = per_example.top_label(probabilities, labels)

    def mean(per_example):
        return lambda index: per_example[index].mean()

    def recalls(index):
        return per_example.class_means(hits[index], labels[index], num_classes)

    def whole(name):
        return lambda index: measured((name,), probabilities[index], labels[index], bins)[name]

    def of_user(name):
        def value(index):
            try:
                return whole(name)(index)
            except UserError:  # it may need examples of every class, which a sample does not have
                return np.nan

        return value

    def group(members):
        return lambda index: per_example.mean_of(recalls(index), members)

    # Measures of every class are computed anew for each sample; these are means of values of each example.
    known = {
        "accuracy": lambda: mean(hits),
        "top5": lambda: mean(per_example.top_hits(probabilities, labels)),
        "brier": lambda: mean(per_example.squared_distance(probabilities, labels)),
        "nll": lambda: mean(per_example.surprise_of_logits(predictions.logits, labels)),
        "balanced_accuracy": lambda: lambda index: np.nanmean(recalls(index)),
        "geometric_mean": lambda: lambda index: per_example.geometric(recalls(index)),
    }
    measures = {
        name: known[name]() if name in known else of_user(name) if ":" in name else whole(name) for name in names
    }
    if chosen := choose_groups(predictions.counts, by):
        measures |= {name: group(members) for name, members in chosen[1].items()}
    return measures
