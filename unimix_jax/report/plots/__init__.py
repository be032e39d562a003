"""Plots from arrays: each function returns a matplotlib figure in one style.

The colours are those of Okabe and Ito, and cividis for areas: colour-blind readers, and readers of grey prints, can
tell them apart.
"""

from unimix_jax import names
from unimix_jax.report.plots.calibration import densities, density, reliability
from unimix_jax.report.plots.classes import (
    accuracy_by_count,
    class_distributions,
    class_distributions_side_by_side,
    confusion,
    confusions,
)
from unimix_jax.report.plots.drawing import image
from unimix_jax.report.plots.runs import error_bars, errors_by_imbalance, errors_side_by_side, training_curves

__all__ = [
    "accuracy_by_count",
    "class_distributions",
    "class_distributions_side_by_side",
    "confusion",
    "confusions",
    "densities",
    "density",
    "error_bars",
    "errors_by_imbalance",
    "errors_side_by_side",
    "image",
    "reliability",
    "training_curves",
]
__getattr__, __dir__ = names.of_module(__name__, __all__)
