"""Published figures, in per cent: of the paper's supplement as printed, and top-1 of the paper and of others.

The supplement is that of arXiv 2111.03874. The paper's main table was not at hand: what no stored page confirms is
marked as unverified. None of them gives a number of seeds or a deviation; the released configs have one seed, and the
released code prints the best epoch on the test images.
"""

from typing import NamedTuple


class Value(NamedTuple):
    """An accuracy in per cent."""

    percent: float
    verified: bool = True


# Table D1: ACE, TACE, SCE, Brier score x 100 (the sum over classes), at imbalance 100.
D1 = {
    "cifar10": {
        "erm": (5.42, 4.66, 5.46, 53.61),
        "mixup": (4.87, 4.20, 4.92, 49.09),
        "remix": (3.49, 3.32, 3.77, 44.84),
        "ldam_drw": (4.14, 2.84, 4.43, 44.76),
        "unimix": (3.48, 3.27, 3.57, 38.98),
        "bayias": (2.45, 2.40, 2.69, 34.30),
        "unimix_bayias": (2.31, 2.17, 2.43, 32.84),
    },
    "cifar100": {
        "erm": (0.831, 0.709, 0.952, 97.05),
        "mixup": (0.751, 0.683, 0.849, 89.26),
        "remix": (0.740, 0.675, 0.846, 89.33),
        "ldam_drw": (0.801, 0.671, 1.093, 107.4),
        "unimix": (0.505, 0.555, 0.687, 80.70),
        "bayias": (0.460, 0.518, 0.631, 78.78),
        "unimix_bayias": (0.450, 0.517, 0.623, 78.24),
    },
}
D1_MEASURES = ("ace", "tace", "sce", "brier")

# Table D2, CIFAR-100-LT: accuracy on test sets of imbalance 100, 10, 1, .1, .01.
D2 = {
    10: {
        "erm": (69.73, 63.67, 55.70, 48.48, 43.13),
        "logit_adjustment": (61.94, 60.14, 59.87, 56.12, 54.06),
        "bayias": (71.89, 63.36, 60.02, 58.20, 62.32),
    },
    100: {
        "erm": (63.54, 52.74, 38.32, 25.00, 14.03),
        "logit_adjustment": (59.13, 51.06, 43.89, 31.14, 26.42),
        "bayias": (64.90, 54.15, 43.92, 36.20, 35.42),
    },
}

# Table D3, CIFAR-100-LT: accuracy and ECE after each of two stages, by imbalance.
D3 = {
    "mislas": (
        {10: (58.7, 3.91), 50: (45.6, 6.00), 100: (40.3, 10.77)},
        {10: (63.2, 1.73), 50: (52.3, 2.25), 100: (47.0, 4.83)},
    ),
    "unimix_bayias_las": (
        {10: (61.1, 7.79), 50: (51.8, 4.91), 100: (47.6, 3.24)},
        {10: (63.0, 1.98), 50: (52.6, 3.45), 100: (48.3, 1.44)},
    ),
}


def _accuracies(cifar10: str, cifar100: str) -> dict[tuple[str, int], Value]:
    """Return accuracies at imbalance 10, 50, 100, 200: "-" for none, "*" behind one that a stored page confirms."""
    texts = [("cifar10", cifar10), ("cifar100", cifar100)]
    return {
        (data, imbalance): Value(float(text.rstrip("*")), text.endswith("*"))
        for data, row in texts
        for imbalance, text in zip((10, 50, 100, 200), row.split(), strict=True)
        if text != "-"
    }


# The paper's table of top-1 accuracies.
PAPER = {
    "erm": _accuracies("86.39 74.94 70.36 66.21", "55.70* 44.02 38.32* 34.56"),
    "mixup": _accuracies("87.10 77.82 73.06 67.73", "58.02 44.99 39.54 34.97"),
    "manifold_mixup": _accuracies("87.03 77.95 72.96 -", "56.55 43.09 38.25 -"),
    "remix": _accuracies("88.15 79.20 75.36 67.08", "59.36 46.21 41.94 36.99"),
    "focal": _accuracies("86.55 76.71 70.43 65.85", "55.78 44.32 38.41 35.62"),
    "tau_norm": _accuracies("87.80 82.78 75.10 70.30", "59.10 48.23 43.60 39.30"),
    "ldam_drw": _accuracies("88.16* 81.27 77.03* 74.74", "58.71* 47.97 42.04* 38.45"),
    "cdt": _accuracies("89.40 81.97 79.40 74.70", "58.90 45.15 44.30 40.50"),
    "logit_adjustment": _accuracies("89.26 83.38 79.91 75.13", "59.87* 49.76 43.89* 40.87"),
    "unimix_bayias": _accuracies("89.66* 84.32 82.75* 78.48", "61.25* 51.11 45.45* 42.07"),
}

_OTHERS = {
    # zhangyongshun/BagofTricks-LT, documents/trick_gallery.md: its own runs, imbalance 50 and 100.
    "BagofTricks-LT": {
        "erm": "- 76.45 71.95 - | - 43.78 37.73 -",
        "focal": "- 77.91 71.56 - | - 41.79 37.22 -",
        "cb": "- 77.48 70.48 - | - 43.78 38.97 -",
        "las": "- 77.96 72.51 - | - 43.78 37.68 -",
        "ldam": "- 79.01 73.66 - | - 43.59 38.88 -",
        "ldam_drw": "- 81.60 77.73 - | - 47.29 42.47 -",
        "cdt": "- 81.81 77.10 - | - 44.83 39.59 -",
        "balanced_softmax": "- 81.11 77.54 - | - 46.55 42.99 -",
        "tau_norm": "- 79.78 72.70 - | - 45.69 40.96 -",
        "crt": "- 80.17 74.99 - | - 45.36 40.26 -",
    },
    # ntucllab/imbalanced-DL, its tables at imbalance 100.
    "imbalanced-DL": {
        "erm": "- - 71.23 - | - - 38.46 -",
        "cb_drw": "- - 75.08 - | - - 40.40 -",
        "ldam_drw": "- - 77.75 - | - - 41.28 -",
        "mixup_drw": "- - 82.11 - | - - 46.91 -",
        "remix_drw": "- - 81.82 - | - - 46.00 -",
    },
    # google-research/google-research logit_adjustment, last epoch; its training is longer.
    "logit_adjustment": {
        "erm": "- - 71.36 - | - - 39.87 -",
        "logit_adjustment_posthoc": "- - 77.32 - | - - 44.07 -",
        "logit_adjustment": "- - 77.89 - | - - 44.06 -",
    },
    # dvlab-research/MiSLAS, README, second stage.
    "MiSLAS": {"mislas": "90.0 85.7 82.5 - | 63.2 52.3 47.0 -"},
}
# Top-1 accuracies of other code bases.
OTHERS = {
    source: {
        method: _accuracies(*(half.strip() for half in text.replace(" |", "|").split("|")))
        for method, text in of_methods.items()
    }
    for source, of_methods in _OTHERS.items()
}
