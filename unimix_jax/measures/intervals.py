"""Bootstrap intervals of measures: how far a number could be another with other images of the same kind. numpy."""

from collections.abc import Callable

import numpy as np

from unimix_jax import batch
from unimix_jax.batch import Predictions
from unimix_jax.errors import UserError, one_of
from unimix_jax.measures import metrics, parts

SAMPLES = 1000
LEVEL = 0.95
# Each sample of the class-wise measures costs a whole measurement.
DEFAULT = tuple(name for name in metrics.MEASURES if name not in metrics.CLASSWISE)


def bootstrap(
    predictions: Predictions,
    *,
    names: tuple[str, ...] = DEFAULT,
    samples: int = SAMPLES,
    level: float = LEVEL,
    seed: int = 0,
    bins: int = metrics.BINS,
    by: str = "auto",
) -> dict[str, tuple[float, float]]:
    """Interval of each measure over resampled examples.

    The examples are drawn again with replacement. The quantiles of the measure over the samples, less their mean,
    are laid around its value on the examples as they are: calibration errors of samples lie above that value (a
    sample holds doubles, so its bins are noisier), which would put the value outside of the plain quantiles. The
    value itself lies above what endless examples would give, see `by_chance`: for a well-calibrated model the
    interval of a calibration error speaks of this many examples, and does not hold the limit.

    Args:
      predictions: logits and labels; with counts that differ, also the groups of `metrics.summary`.
      names: of `metrics.MEASURES`; by default all but the class-wise SCE, ACE and TACE, whose samples are slow.
      samples: how many times.
      level: of the interval.
      seed: of the draws.
      bins, by: see `metrics.summary`.

    Returns:
      {name: (low, high)}, within the measure's range; many, medium and few as well where there are groups (not for
      one without examples).
    """
    predictions = batch.checked(predictions)
    if predictions.labels is None:
        raise UserError("these predictions have no labels, so they cannot be measured")
    if samples < 2 or not 0 < level < 1:
        raise UserError(f"a bootstrap of {samples} samples at level {level:g}: give at least 2, and a level in 0..1")
    labels, num_classes = predictions.labels, predictions.logits.shape[1]
    measures = _measures(predictions, tuple(one_of("measure", name, metrics.MEASURES) for name in names), bins, by)
    random = np.random.Generator(np.random.Philox(key=seed))
    everything = np.arange(len(labels))
    values = {name: measure(everything) for name, measure in measures.items()}
    drawn = np.empty((samples, len(measures)))
    for row in drawn:
        index = random.integers(len(labels), size=len(labels))
        row[:] = [measure(index) for measure in measures.values()]
    tail = 50 * (1 - level)
    result = {}
    for (name, value), column in zip(values.items(), drawn.T, strict=True):
        column = column[~np.isnan(column)]  # a group of rare classes can be missing from a sample
        if len(column) and not np.isnan(value) and not (name == "top5" and num_classes <= 5):
            low, high = value + np.percentile(column, [tail, 100 - tail]) - column.mean()
            highest = {"brier": 2.0, "nll": np.inf}.get(name, 1.0)
            result[name] = (float(max(low, 0.0)), float(min(high, highest)))
    return result


def by_chance(predictions: Predictions, *, samples: int = 200, seed: int = 0, bins: int = metrics.BINS) -> dict:
    """ECE, smooth ECE and MCE that a perfectly calibrated model with these confidences shows on average.

    None of the three is 0 for it: bins of few images differ from their confidence by chance. Hits are drawn from the
    confidences.

    Returns:
      {"ece": ..., "smooth_ece": ..., "mce": ...}.

    Source: consistency resampling, Broecker and Smith, Weather and Forecasting 2007.
    """
    confidence = np.minimum(parts.softmax(batch.checked(predictions).logits).max(axis=1), 1.0)
    random = np.random.Generator(np.random.Philox(key=seed))
    drawn = np.empty((samples, 3))
    for row in drawn:
        hits = random.random(len(confidence)) < confidence
        row[:] = [
            parts.ece_of(confidence, hits, bins),
            parts.smooth_ece_of(confidence, hits),
            parts.mce_of(confidence, hits, bins),
        ]
    return dict(zip(("ece", "smooth_ece", "mce"), drawn.mean(axis=0).tolist(), strict=True))


def _measures(
    predictions: Predictions, names: tuple[str, ...], bins: int, by: str
) -> dict[str, Callable[[np.ndarray], float]]:
    """Each measure as a function of the positions of examples; what does not change is worked out once."""
    probabilities, labels = parts.softmax(predictions.logits), predictions.labels
    num_classes = probabilities.shape[1]
    confidence, hits = parts.top_label(probabilities, labels)

    def mean(per_example):
        return lambda index: per_example[index].mean()

    def of_top_label(measure, **options):
        return lambda index: measure(confidence[index], hits[index], **options)

    def recalls(index):
        return parts.class_means(hits[index], labels[index], num_classes)

    def whole(name):
        return lambda index: metrics.measured((name,), probabilities[index], labels[index], bins)[name]

    def group(members):
        return lambda index: parts.mean_of(recalls(index), members)

    # What looks at every class is measured anew for each sample; these need less.
    known = {
        "accuracy": lambda: mean(hits),
        "top5": lambda: mean(parts.top_hits(probabilities, labels)),
        "brier": lambda: mean(parts.squared_distance(probabilities, labels)),
        "nll": lambda: mean(parts.surprise_of_logits(predictions.logits, labels)),
        "balanced_accuracy": lambda: lambda index: np.nanmean(recalls(index)),
        "geometric_mean": lambda: lambda index: parts.geometric(recalls(index)),
        "ece": lambda: of_top_label(parts.ece_of, bins=bins),
        "mce": lambda: of_top_label(parts.mce_of, bins=bins),
        "smooth_ece": lambda: of_top_label(parts.smooth_ece_of),
    }
    measures = {name: known[name]() if name in known else whole(name) for name in names}
    if chosen := metrics.choose_groups(predictions.counts, by):
        measures |= {name: group(members) for name, members in chosen[1].items()}
    return measures
