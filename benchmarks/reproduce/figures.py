"""The figures, drawn by the functions of the report: from results where these are enough, else from predictions."""

import pathlib
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.reproduce import directories, store
from benchmarks.reproduce.tables import NAMES, grouped
from unimix_jax import metrics, storage
from unimix_jax.metrics import per_example
from unimix_jax.metrics.predictions import Predictions, read_predictions
from unimix_jax.report import class_distributions, plots
from unimix_jax.training import rundir

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = "pictures"
_CAPTIONS = {
    "figure_a1": "Class distributions of training images, mixup, UniMix's factor and UniMix: the paper's closed forms "
    "as lines, the exact distributions as marks.",
    "figure_d1": "Test error of the last epoch by imbalance: means of the seeds, their standard deviation; the best "
    "and the worst method of each imbalance ringed.",
    "figure_d2_density": "Accuracy against confidence of mini-batches of 100 test images, seed 0.",
    "figure_d2_reliability": "Accuracy in each of 15 bins of confidence, seed 0.",
    "figure_d4_confusion": "Predicted class by true class (x axis), seed 0; columns sum to one.",
    "figure_d4_log_confusion": "The same on a logarithmic scale.",
}


def path_of(picture: str, scale: str, results: pathlib.Path) -> pathlib.Path:
    """Return the file of a picture; that of Figure A1 is of no scale."""
    name = picture if picture == "figure_a1" else f"{scale}_{picture}"
    return results / PICTURES / f"{name}.png"


def shown(scale: str, item: str, results: pathlib.Path) -> list[str]:
    """Return the Markdown of a figure's pictures that are there; Figure A1 stands with the paper's scale only."""
    if item == "figure_a1" and scale != "paper":
        return []
    pictures = [name for name in _CAPTIONS if name.startswith(item) and path_of(name, scale, results).exists()]
    return [f"![{_CAPTIONS[name]}]({PICTURES}/{path_of(name, scale, results).name})" for name in pictures]


def draw(scale: str, item: str, runs: pathlib.Path, results: pathlib.Path) -> list[pathlib.Path]:
    """Draw a figure, and return its files; [] for what is no figure, or if there is nothing to draw.

    Args:
      scale: name of the scale.
      item: name of the figure.
      runs: folder of the run directories, which have the predictions.
      results: folder of the results.
    """
    figures: dict[str, Figure] = {}
    if item == "figure_a1":
        figures[item] = plots.class_distributions_side_by_side(class_distributions.paper_panels())
    elif item == "figure_d1":
        if panels := errors(scale, results):
            figures[item] = plots.errors_side_by_side(panels)
    elif item in ("figure_d2", "figure_d4"):
        models = predictions(scale, item, runs, results)
        figures = (_calibration(models) if item == "figure_d2" else _confusions(models)) if models else {}
    paths = []
    for name, figure in figures.items():
        path = path_of(name, scale, results)
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_whole(path, plots.image(figure, "png"))
        paths.append(path)
    return paths


def errors(scale: str, results: pathlib.Path) -> dict[str, dict[str, dict[float, list[float]]]]:
    """Return the test errors of Figure D1 by data set, method and imbalance, one a seed."""
    panels: dict[str, dict[str, dict[float, list[float]]]] = {}
    for run, of_seeds in grouped(scale, "figure_d1", results).items():
        values = store.values_of(of_seeds, "accuracy")
        if len(values):
            of_method = panels.setdefault(NAMES[run.data], {}).setdefault(run.method, {})
            of_method[run.imbalance] = (1 - values).tolist()
    return panels


def predictions(scale: str, item: str, runs: pathlib.Path, results: pathlib.Path) -> dict[str, Predictions]:
    """Return the test predictions of the first seed of each method of a figure; say which are not there."""
    models = {}
    for run, of_seeds in grouped(scale, item, results).items():
        first = next((result for result in of_seeds if result["run"]["seed"] == 0), None)
        path = first and _predictions_path(run.folder, first["config"], runs)
        if path is None:
            print(f"left out of {item}: {runs / run.folder} has no predictions of seed 0")
        else:
            models[run.method] = read_predictions(path)
    return models


def _predictions_path(folder: str, config: dict, runs: pathlib.Path) -> pathlib.Path | None:
    """Return the test predictions of seed 0 of a config; None if they are not there."""
    file = rundir.predictions_file("test")
    for directory, seeds in directories.of_config(runs / folder, config):
        path = directory / file if len(seeds) == 1 else directory / rundir.seed_folder(0) / file
        if 0 in seeds and path.exists():
            return path
    return None


def _calibration(models: dict[str, Predictions]) -> dict[str, "Figure"]:
    bins, tops = {}, {}
    for name, of_test in models.items():
        probabilities = per_example.softmax(of_test.logits)
        bins[name] = metrics.reliability(probabilities, of_test.labels)
        tops[name] = per_example.top_label(probabilities, of_test.labels)
    return {"figure_d2_density": plots.densities(tops), "figure_d2_reliability": plots.reliability(bins)}


def _confusions(models: dict[str, Predictions]) -> dict[str, "Figure"]:
    panels = {}
    for name, of_test in models.items():
        classes = of_test.logits.shape[1]
        matrix = per_example.confusion_matrix(of_test.labels, np.asarray(of_test.logits).argmax(axis=1), classes)
        panels[name] = matrix, of_test.counts, list(of_test.class_names or map(str, range(classes)))
    return {
        "figure_d4_confusion": plots.confusions(panels),
        "figure_d4_log_confusion": plots.confusions(panels, log=True),
    }
