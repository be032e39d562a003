"""Metrics of predictions: accuracy, calibration errors, calibration, label shift and bootstrap intervals. No jax.

A metric is called as metric(probabilities, labels, ...) and returns a float, such as `ece` and `accuracy`; `summary`
returns all of them for `Predictions`.
"""

from unimix_jax import names
from unimix_jax.metrics.classwise import THRESHOLD, WEIGHTINGS, ace, class_ece, classwise_errors, sce, tace
from unimix_jax.metrics.measures import (
    Bins,
    accuracy,
    balanced_accuracy,
    brier,
    class_accuracy,
    ece,
    geometric_mean,
    group_accuracy,
    mce,
    nll,
    nll_of_logits,
    reliability,
    smooth_ece,
    top_accuracy,
)
from unimix_jax.metrics.per_example import BINS, softmax
from unimix_jax.metrics.predictions import Predictions
from unimix_jax.metrics.summaries import MEASURES, choose_groups, measured, summary, traits_of

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
    "classwise_errors",
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
    "traits_of",
]
__getattr__, __dir__ = names.of_module(__name__, __all__)
