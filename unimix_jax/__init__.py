"""Long-tailed image recognition with calibrated confidence, in JAX.

The main names, and `docs/library.md` has a short program for each:

  train(config, ...)      a whole run, as `python -m unimix_jax.main` does it: metrics and predictions
  load_config(name)       a config, to look at and change before `train`
  evaluate(...)           every measure of anyone's predictions, with intervals and an HTML report
  losses, mixing          functions for a training loop of your own
  metrics, calibration, label_shift, priors, plots, theory
                          functions of arrays: ECE and its kin, temperatures, test priors, pictures, closed forms

Example: measure predictions.
  >>> import numpy as np, unimix_jax
  >>> labels = np.array([0, 0, 0, 1])
  >>> probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
  >>> round(unimix_jax.ece(probabilities, labels), 3)
  0.3
  >>> result = unimix_jax.evaluate(probabilities=probabilities, labels=labels, samples=0)
  >>> result.accuracy, round(result.nll, 3)
  (0.75, 0.4)
  >>> temperature = unimix_jax.fit_temperature(np.log(probabilities), labels)
  >>> unimix_jax.shift_prior(np.log(probabilities), [0.75, 0.25], [0.5, 0.5]).argmax(axis=1).tolist()
  [0, 0, 1, 1]

In your own step, a batch is mixed by `unimix_jax.mixing.unimix(key, images, labels, counts=counts)`.

A run is `unimix_jax.train("digits_lt:method=unimix_bayias", epochs=20)`. A mistake raises `UserError` with one
sentence. Names are imported when they are first used: `import unimix_jax` alone imports neither jax nor numpy.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING

from unimix_jax import names as _names

__version__ = "0.1.0"

__all__ = [
    "Evaluation",
    "Failure",
    "Interrupted",
    "Mixed",
    "NonFiniteError",
    "Predictions",
    "Run",
    "UserError",
    "__version__",
    "accuracy",
    "ace",
    "balanced_accuracy",
    "bayias",
    "brier",
    "calibration",
    "ece",
    "estimate_prior",
    "evaluate",
    "fit_temperature",
    "label_shift",
    "load_config",
    "losses",
    "mce",
    "metrics",
    "mixing",
    "nll",
    "plots",
    "priors",
    "reliability",
    "sce",
    "shift_prior",
    "smooth_ece",
    "softmax",
    "summary",
    "tace",
    "theory",
    "train",
    "unimix",
]

# The module of each name at the top that is not a module itself. `evaluate` is one that can be called, see there.
_MODULE_OF = {
    name: module
    for module, names in {
        "errors": ("Failure", "Interrupted", "NonFiniteError", "UserError"),
        "library": ("Evaluation", "Run", "load_config", "train"),
        "losses": ("bayias",),
        "mixing": ("Mixed", "unimix"),
        "metrics": (
            "Predictions", "accuracy", "ace", "balanced_accuracy", "brier", "ece", "mce", "nll", "reliability", "sce",
            "smooth_ece", "softmax", "summary", "tace",
        ),
        "calibration": ("fit_temperature",),
        "label_shift": ("estimate_prior", "shift_prior"),
    }.items()
    for name in names
}  # fmt: skip

if TYPE_CHECKING:
    from unimix_jax import calibration, label_shift, losses, metrics, mixing, plots, priors, theory
    from unimix_jax.errors import Failure, Interrupted, NonFiniteError, UserError
    from unimix_jax.library import Evaluation, Run, evaluate, load_config, train
    from unimix_jax.methods.losses import bayias
    from unimix_jax.metrics import (
        Predictions,
        accuracy,
        ace,
        balanced_accuracy,
        brier,
        ece,
        mce,
        nll,
        reliability,
        sce,
        smooth_ece,
        softmax,
        summary,
        tace,
    )
    from unimix_jax.metrics.calibration import fit_temperature
    from unimix_jax.metrics.label_shift import estimate_prior, shift_prior
    from unimix_jax.mixing import Mixed, unimix


def __getattr__(name: str):
    """Import a name of the package when it is first used."""
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value
    if name.isidentifier() and not name.startswith("_"):
        if importlib.util.find_spec(f"{__name__}.{name}") is not None:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{_names.hint(name, names=__all__)}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__name__"]
