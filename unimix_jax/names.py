"""Public names: which ones a module shows, and where a name is that somebody looks for in vain. Imports no package."""

import importlib
import sys
from collections.abc import Callable, Iterable

from unimix_jax.errors import did_you_mean

_PACKAGE = __name__.partition(".")[0]
# The modules for a user's programs, by their short names.
MODULES = ("losses", "mixing", "metrics", "calibration", "label_shift", "priors", "plots", "config")
# What other libraries and papers call the functions here, in lower case and without underscores.
_SYNONYMS = {
    "adaptivecalibrationerror": "metrics.ace",
    "blackboxshiftestimation": "label_shift.bbse",
    "brierscore": "metrics.brier",
    "classbalancedweights": "priors.effective_number_weights",
    "classwiseece": "metrics.sce",
    "expectedcalibrationerror": "metrics.ece",
    "labelsmoothing": "losses.label_aware_smoothing",
    "logloss": "metrics.nll",
    "maximumcalibrationerror": "metrics.mce",
    "negativeloglikelihood": "metrics.nll",
    "reliabilitydiagram": "plots.reliability",
    "staticcalibrationerror": "metrics.sce",
    "temperaturescaling": "calibration.fit_temperature",
    "vectorscaling": "calibration.fit_bias_corrected",
}


def of_module(module: str, names: Iterable[str]) -> tuple[Callable[[str], None], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a public module: a hint for an unknown name, and its public names alone.

    Args:
      module: its full name; users know it by the last part.
      names: its `__all__`.

    Returns:
      Both functions.
    """
    short, names = module.rpartition(".")[2], sorted(names)

    def missing(name: str) -> None:
        where = "" if name.startswith("_") else hint(name, short, names)
        raise AttributeError(f"module '{_PACKAGE}.{short}' has no attribute {name!r}{where}")

    return missing, lambda: [*names, "__all__", "__doc__", "__file__", "__name__"]


def hint(name: str, module: str = "", names: Iterable[str] = ()) -> str:
    """Return where a name is that is not where it was looked for, or which name is nearest to it; "" if none is near.

    Args:
      name: that somebody looked for.
      module: the short name of the module where it was; "" for the package itself.
      names: the public names of that module, or of the package.

    Returns:
      The end of a sentence.
    """
    # Nobody looks for a constant: `temperature` is not TEMPERATURES.
    own = {each.lower(): f"{module}.{each}" if module else each for each in names if not each.isupper()}
    below = {}
    for short in MODULES:
        # From within a module nothing is loaded that is not there: a failed look-up must not cost an import of JAX.
        contents = sys.modules.get(f"{_PACKAGE}.{short}") if module else importlib.import_module(f"{_PACKAGE}.{short}")
        below |= {each.lower(): f"{short}.{each}" for each in getattr(contents, "__all__", ())}
    if synonym := _SYNONYMS.get(name.lower().replace("_", "")):
        return f"; it is {_PACKAGE}.{synonym}"
    if path := {**below, **own}.get(name.lower()):
        return f"; it is {_PACKAGE}.{path}"
    for known in (own, below) if module else ({**below, **own},):
        if nearest := did_you_mean(name.lower(), known):
            for key, path in known.items():
                nearest = nearest.replace(f"{key!r}", f"'{_PACKAGE}.{path}'")
            return nearest
    return ""
