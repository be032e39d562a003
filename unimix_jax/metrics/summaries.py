"""All measures of predictions by name, and the groups of classes."""

import dataclasses
from collections.abc import Callable

import numpy as np

from unimix_jax import priors, registry
from unimix_jax.errors import UserError, described, one_of
from unimix_jax.metrics import per_example
from unimix_jax.metrics.classwise import ace, classwise_errors, sce, tace
from unimix_jax.metrics.measures import (
    accuracy,
    balanced_accuracy,
    brier,
    class_accuracy,
    ece,
    geometric_mean,
    mce,
    nll,
    nll_of_logits,
    smooth_ece,
    top_accuracy,
)
from unimix_jax.metrics.per_example import BINS
from unimix_jax.metrics.predictions import Predictions, checked_predictions

# By name, in the order of tables.
MEASURES: dict[str, Callable[..., float]] = {
    measure.traits.name or measure.__name__: measure
    for measure in (
        accuracy,
        top_accuracy,
        balanced_accuracy,
        geometric_mean,
        ece,
        smooth_ece,
        mce,
        sce,
        ace,
        tace,
        brier,
        nll,
    )
}


_CLASSWISE = {name for name, measure in MEASURES.items() if measure.traits.classwise}


def traits_of(name: str) -> registry.Measure:
    """Return how a measure is shown and measured.

    Args:
      name: a key of `MEASURES`, or "module:function" of a user's.

    Returns:
      Its traits; a measure without a title has its name for one.

    Raises:
      UserError: an unknown name.

    >>> traits_of("ece").decimals
    2
    """
    traits = registry.traits("measure", registry.resolve("measure", name))
    return traits if traits.title else dataclasses.replace(traits, title=name.rpartition(":")[2])


def _value_of(name: str, probabilities: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """Return a measure's value; the function may be the user's, and raise anything."""
    options = {"bins": bins} if traits_of(name).bins else {}
    if name in MEASURES:
        return MEASURES[name](probabilities, labels, **options)
    measure = registry.resolve("measure", name)
    try:
        value = measure(_read_only(probabilities), _read_only(labels), **options)
    except (Exception, SystemExit) as error:
        raise UserError(f"the measure {name} fails: {described(error)}") from error
    if np.ndim(value) or not np.issubdtype(np.asarray(value).dtype, np.number):
        returned = f"shape {np.shape(value)}" if np.ndim(value) else repr(value)
        raise UserError(f"the measure {name} returns {returned}; it must return one number")
    return float(value)


def _read_only(values: np.ndarray) -> np.ndarray:
    """Return a view that a user's function cannot write to: other measures read the same array."""
    view = values.view()
    view.flags.writeable = False
    return view


def measured(names: tuple[str, ...], probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> dict:
    """Compute measures of `MEASURES` by name; SCE, ACE and TACE share one pass over the sorted columns.

    Args:
      names: keys of `MEASURES`, or "module:function" of a user's (probabilities, labels) -> float.
      probabilities: float[N, K].
      labels: int[N].
      bins: number of bins or ranges of the measures that have them.

    Returns:
      {name: value}, and with SCE, ACE or TACE also `class_ece`, float64[K].

    Raises:
      UserError: an unknown name, or arrays that are not predictions.

    >>> measured(("accuracy", "brier"), np.array([[0.75, 0.25], [0.5, 0.5]]), np.array([0, 0]))
    {'accuracy': 1.0, 'brier': 0.3125}
    """
    values = {}
    for name in names:
        if name not in _CLASSWISE:
            values[name] = _value_of(name, probabilities, labels, bins)
    if not _CLASSWISE.isdisjoint(names):
        errors, values["class_ece"] = classwise_errors(probabilities, labels, bins)
        values |= {name: error for name, error in errors.items() if name in names}
    return values


def summary(
    predictions: Predictions, *, names: tuple[str, ...] = tuple(MEASURES), bins: int = BINS, by: str = "auto"
) -> dict:
    """Return all measures of predictions, as metrics.json holds them for a split.

    Args:
      predictions: logits and labels; with counts that differ, of three classes or more, also the groups of classes.
      names: see `measured`; top5 is left out if there are five classes or fewer.
      bins: of the measures that have bins or ranges.
      by: how classes are grouped: "shots", "thirds", or "auto": by shots, or by thirds if the shot rule leaves a group
        empty.

    Returns:
      The measures, images, bins, class_accuracy and class_ece (lists), and with counts many, medium, few, groups
      ("shots" or "thirds"). The value of a class or group without images is None. other_prior is a sentence, present if
      the logits stand for another prior than that of the labels.

    Raises:
      UserError: no labels, or arrays that are not predictions.

    >>> logits, labels = np.log([[0.7, 0.3], [0.6, 0.4]]), np.array([0, 1])
    >>> summary(Predictions(logits, labels), names=("accuracy", "brier"))["accuracy"]
    0.5
    """
    predictions = checked_predictions(predictions)
    if predictions.labels is None:
        raise UserError("these predictions have no labels, so they cannot be measured")
    probabilities, labels = per_example.softmax(predictions.logits), predictions.labels
    num_classes = probabilities.shape[1]
    # NLL is exact from logits.
    shown = tuple(name for name in names if name != "nll" and num_classes > traits_of(name).more_classes_than)
    values = measured(shown, probabilities, labels, bins)
    values |= {name: _none_if_nan(values[name]) for name in shown if name not in MEASURES}
    if "nll" in names:
        values["nll"] = nll_of_logits(predictions.logits, labels)
    values |= {"images": len(labels), "bins": bins}
    accuracies = class_accuracy(probabilities, labels)
    values["class_accuracy"] = [_none_if_nan(v) for v in accuracies]
    if "class_ece" in values:
        values["class_ece"] = values["class_ece"].tolist()
    if chosen := choose_groups(predictions.counts, by):
        values["groups"], groups = chosen
        values |= {group: _none_if_nan(per_example.mean_of(accuracies, members)) for group, members in groups.items()}
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
        "are, and test_prior of evaluate corrects them"
    )


def choose_groups(counts: np.ndarray | None, by: str = "auto") -> tuple[str, dict[str, np.ndarray]] | None:
    """Group the classes into many, medium and few.

    Args:
      counts: int[K], training images of each class; None if they are not known.
      by: "shots", "thirds", or "auto": by shots, or by thirds if the shot rule leaves a group empty.

    Returns:
      ("shots" or "thirds", {group: bool[K]}); None without counts, for fewer than three classes, and for equal counts.

    Raises:
      UserError: an unknown rule.

    >>> choose_groups(np.array([500, 50, 5]))[0]
    'shots'
    """
    one_of("grouping of classes", by, ("auto", *priors.GROUPINGS))
    if counts is None or len(counts) < 3 or np.min(counts) == np.max(counts):
        return None
    if by != "auto":
        return by, priors.groups(counts, by)
    by_shots = priors.groups(counts, "shots")
    if all(members.any() for members in by_shots.values()):
        return "shots", by_shots
    return "thirds", priors.groups(counts, "thirds")


def _none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
