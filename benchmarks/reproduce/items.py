"""The tables and figures: which runs each needs."""

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.reproduce.runs import SCALES, TEST_IMBALANCES, Run, of_methods
from unimix_jax.methods.recipes import RECIPES

D1_METHODS = ("erm", "mixup", "remix", "ldam_drw", "unimix", "bayias", "unimix_bayias")
D2_METHODS = ("erm", "logit_adjustment", "bayias")
D2_IMBALANCES = (10, 100)  # of the training images
D3_METHODS = ("mislas", "unimix_bayias_las")
FACTOR_METHODS = (
    "bayias",
    "unimix_bayias",
    "unimix_bayias_code",
    "unimix_bayias+unwrapped",
    "unimix_bayias+constant_share",
    "unimix_bayias+natural_partners",
)
DTYPE_METHODS = ("erm", "unimix_bayias", "erm+bfloat16", "unimix_bayias+bfloat16")
ORDER_METHODS = ("bayias+permuted", "bayias+independent")
PICTURED = ("erm", "mixup", "remix", "ldam_drw", "logit_adjustment", "unimix", "bayias", "unimix_bayias")


class Item(NamedTuple):
    """A table or figure."""

    title: str
    runs: Callable[[str, int], list[Run]]  # (scale, seeds)
    seeds: int = 0  # unless others are asked for; 0 for those of the scale


def _one_set(methods):
    return lambda scale, seeds: of_methods(scale, methods, seeds)


def _every_set(methods):
    return lambda scale, seeds: of_methods(scale, methods, seeds, data=SCALES[scale].sets)


def d2_methods() -> tuple[str, ...]:
    """Return the methods of Table D2, `bayias` trained for each test prior; that of imbalance 1 is its usual one."""
    priors = (f"bayias+test_prior_{imbalance:g}" for imbalance in TEST_IMBALANCES if imbalance != 1)
    return (*D2_METHODS, *priors)


def last_set(scale: str) -> str:
    """Return the data set of Tables D2 and D3: the one with the most classes."""
    return list(SCALES[scale].sets)[-1]


def training_imbalances(scale: str, wanted: tuple[int, ...]) -> tuple[int, ...]:
    """Return the imbalances of a table that a scale has; its smallest and largest where it has only one of them."""
    known = SCALES[scale].imbalances
    common = tuple(imbalance for imbalance in wanted if imbalance in known)
    return common if len(common) > 1 else (known[0], known[-1])


def _d2(scale: str, seeds: int) -> list[Run]:
    imbalances = training_imbalances(scale, D2_IMBALANCES)
    return of_methods(scale, d2_methods(), seeds, [last_set(scale)], imbalances)


def _d3(scale: str, seeds: int) -> list[Run]:
    return of_methods(scale, D3_METHODS, seeds, [last_set(scale)], SCALES[scale].imbalances[:3])


def _main(scale: str, seeds: int) -> list[Run]:
    """Return every recipe, those of the paper's Table D1 first, at every imbalance, the usual one first."""
    of_scale, methods = SCALES[scale], tuple(dict.fromkeys((*D1_METHODS, *RECIPES)))
    usual = of_methods(scale, methods, seeds, data=of_scale.sets)
    if not of_scale.every_imbalance:
        return usual
    others = tuple(imbalance for imbalance in of_scale.imbalances if imbalance != of_scale.imbalance)
    return usual + of_methods(scale, methods, seeds, of_scale.sets, others)


def _d1_figure(scale: str, seeds: int) -> list[Run]:
    return of_methods(scale, PICTURED, seeds, imbalances=SCALES[scale].imbalances)


ITEMS = {
    "d1": Item("Calibration: the paper's Table D1", _every_set(D1_METHODS)),
    "d2": Item("Test sets of other imbalances: the paper's Table D2", _d2),
    "d3": Item("Two stages: the paper's Table D3", _d3),
    "main": Item("Accuracy of every recipe", _main),
    "factor": Item("UniMix's factor", _one_set(FACTOR_METHODS)),
    "order": Item("The order of the images", _one_set(ORDER_METHODS), seeds=20),
    "bfloat16": Item("bfloat16", _one_set(DTYPE_METHODS)),
    "figure_a1": Item("Class distributions: the paper's Figure A1", lambda scale, seeds: []),
    "figure_d1": Item("Test error by imbalance: the paper's Figure D1", _d1_figure),
    "figure_d2": Item("Densities and reliability: the paper's Figures D2 and D3", _one_set(PICTURED)),
    "figure_d4": Item("Confusion: the paper's Figures D4 to D7", _one_set(PICTURED)),
}
