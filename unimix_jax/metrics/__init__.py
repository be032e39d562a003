"""Metrics of predictions: accuracy, calibration errors, calibration, label shift and bootstrap intervals. No jax.

A metric is called as metric(probabilities, labels, ...) and returns a float, such as `ece` and `accuracy`; `summary`
returns all of them for `Predictions`. See `measures`.
"""

from unimix_jax.metrics.measures import (
    BINS,
    MEASURES,
    THRESHOLD,
    WEIGHTINGS,
    Bins,
    accuracy,
    ace,
    balanced_accuracy,
    brier,
    choose_groups,
    class_accuracy,
    class_ece,
    ece,
    geometric_mean,
    group_accuracy,
    mce,
    measured,
    nll,
    nll_of_logits,
    reliability,
    sce,
    smooth_ece,
    summary,
    tace,
    top_accuracy,
)
from unimix_jax.metrics.per_example import softmax
from unimix_jax.metrics.predictions import Predictions

__all__ = [
    "BINS",
    "MEASURES",
    "THRESHOLD",
    "WEIGHTINGS",
    "Bins",
    "Predictions",
    "accuracy",
    "ace",
    "balanced_accuracy",
    "brier",
    "choose_groups",
    "class_accuracy",
    "class_ece",
    "ece",
    "geometric_mean",
    "group_accuracy",
    "mce",
    "measured",
    "nll",
    "nll_of_logits",
    "reliability",
    "sce",
    "smooth_ece",
    "softmax",
    "summary",
    "tace",
    "top_accuracy",
]
