"""Pictures of calibration: reliability diagrams, and the joint density of accuracy and confidence."""

from typing import TYPE_CHECKING

import numpy as np

from unimix_jax import metrics
from unimix_jax.errors import UserError
from unimix_jax.report.plots.drawing import fitting_title, grid, label_axes, subplots, whole_ticks
from unimix_jax.report.style import BLUE, GREY, RED, in_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@in_style
def reliability(panels: dict[str, metrics.Bins]) -> "Figure":
    """Draw reliability diagrams side by side: accuracy by bin of confidence, the gap hatched, the examples below.

    The bar ends at the accuracy. The gap to the confidence stands on the bar where the model is over-confident, and is
    a pale hatching over the bar where the model is under-confident.

    Args:
      panels: title -> bins of `metrics.reliability`.

    Returns:
      The figure.

    Raises:
      UserError: no panel, or something else than bins.
    """
    if not isinstance(panels, dict) or not panels or not all(isinstance(b, metrics.Bins) for b in panels.values()):
        raise UserError(
            f"panels are {type(panels).__name__ if panels else panels!r}; they must be a dict with the title and the "
            "bins of each panel, such as {'my model': metrics.reliability(probabilities, labels)}"
        )
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    rows, columns = grid(len(panels))
    figure_width = 3.2 * columns if columns > 1 else 3.7  # at least as wide as the legend
    figure, axes = subplots(figure_width, 4.4 * rows, 2 * rows, columns, height_ratios=[3, 1] * rows, squeeze=False)
    accuracy = {"facecolor": BLUE, "edgecolor": "white"}
    over = {"facecolor": "#F6D5BF", "edgecolor": RED, "hatch": "////"}
    under = {"facecolor": BLUE, "edgecolor": "#D6E9F8", "hatch": "////"}  # the bar is seen to end at the accuracy
    most = 1.05 * max(bins.count.max() for bins in panels.values())
    for i, (title, bins) in enumerate(panels.items()):
        upper, lower = axes[2 * (i // columns)][i % columns], axes[2 * (i // columns) + 1][i % columns]
        left, width = bins.edges[:-1], np.diff(bins.edges)
        filled = bins.count > 0
        error = float(np.nansum(np.abs(bins.accuracy - bins.confidence) * bins.count) / bins.count.sum())
        upper.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
        upper.bar(left[filled], bins.accuracy[filled], width[filled], align="edge", linewidth=0.6, **accuracy)
        gap = bins.confidence - bins.accuracy
        for mask, style in ((filled & (gap > 0), over), (filled & (gap < 0), under)):
            bottom = bins.accuracy[mask]
            upper.bar(left[mask], gap[mask], width[mask], bottom, align="edge", linewidth=0.6, **style)
        upper.set(title=f"{fitting_title(title, figure_width / columns - 0.75)}\nECE {100 * error:.1f} %")
        upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        upper.tick_params(labelbottom=False)
        lower.bar(left, bins.count, width=width, align="edge", color=GREY, edgecolor="white", linewidth=0.6)
        lower.set(xlabel="confidence", ylabel="images", xlim=(0, 1), ylim=(0, most))
        lower.yaxis.set_major_locator(whole_ticks(3))
    for j in range(len(panels), rows * columns):
        for row in range(2):
            axes[2 * (j // columns) + row][j % columns].set_visible(False)
    handles = [
        Line2D([], [], color=GREY, linestyle="--", linewidth=1, label="confidence = accuracy"),
        Patch(**accuracy, label="accuracy"),
        Patch(**over, label="gap, over-confident"),
        Patch(**under, label="gap, under-confident"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2 * columns)
    return figure


def density(
    confidence: np.ndarray, hits: np.ndarray, *, batch: int = 100, draws: int = 2000, seed: int = 0
) -> "Figure":
    """Draw the joint density of the mean accuracy and mean confidence of mini-batches (the paper's Fig. D2).

    Args:
      confidence: float[N].
      hits: bool[N].
      batch: images of a mini-batch, at most N.
      draws: mini-batches, each drawn without replacement from all images.
      seed: of the draws.

    Returns:
      The figure.
    """
    return densities({"Mini-batches": (confidence, hits)}, batch=batch, draws=draws, seed=seed)


@in_style
def densities(
    panels: dict[str, tuple[np.ndarray, np.ndarray]], *, batch: int = 100, draws: int = 2000, seed: int = 0
) -> "Figure":
    """Draw the joint density of accuracy and confidence of several models side by side, on the same axes (Fig. D2, D3).

    Args:
      panels: title -> confidence float[N] and hits bool[N].
      batch: images of a mini-batch, at most the smallest N.
      draws: mini-batches of each model, each drawn without replacement from all images.
      seed: of the draws.

    Returns:
      The figure. Each density is shown as a share of its own peak.

    Raises:
      UserError: no panel.
    """
    if not panels:
        raise UserError("there is no model whose density could be drawn; panels must hold one at least")
    batch = min(batch, *(len(hits) for _, hits in panels.values()))
    means = {title: _means_of_batches(*arrays, batch, draws, seed) for title, arrays in panels.items()}
    low, high = zip(*(_limits(points) for points in means.values()), strict=True)
    low, high = min(low), max(high)
    rows, columns = grid(len(panels))
    alone = len(panels) == 1
    figure, axes = subplots(
        3.9 if alone else 2.8 * columns + 0.7, 3.6 if alone else 2.9 * rows + 0.2, rows, columns, squeeze=False
    )
    for axis, (title, points) in zip(axes.flat, means.items(), strict=False):
        edges = [_cells(values) for values in points.T]
        counts, _, _ = np.histogram2d(*points.T, bins=edges)
        counts = _smoothed(_smoothed(counts, 2.5).T, 2.5).T
        centres = [(each[:-1] + each[1:]) / 2 for each in edges]
        levels = np.linspace(0.05, 1, 20)
        areas = axis.contourf(*centres, counts.T / counts.max(), levels=levels, cmap="cividis")
        axis.plot([low, high], [low, high], color=GREY, linestyle="--", linewidth=1, label="confidence = accuracy")
        confidence, hits = panels[title]
        axis.plot(
            confidence.mean(), hits.mean(), marker="+", markersize=10, color=RED, linestyle="none", label="all images"
        )
        axis.set(title=fitting_title(title, 2.2), xlim=(low, high), ylim=(low, high))
        axis.set_aspect("equal")
        axis.xaxis.set_major_locator(axis.yaxis.get_major_locator())
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    label_axes(figure, axes, f"mean confidence of {batch} images", f"accuracy of {batch} images")
    ends = {"ticks": [0.05, 0.25, 0.5, 0.75, 1], "aspect": 20 * rows}
    figure.colorbar(areas, ax=axes, label="density, share of its peak", **ends)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2)
    return figure


def _means_of_batches(confidence: np.ndarray, hits: np.ndarray, batch: int, draws: int, seed: int) -> np.ndarray:
    """Return the mean confidence and the accuracy of mini-batches, float64[draws, 2], the latter with some noise."""
    random = np.random.Generator(np.random.Philox(key=seed))
    means = np.empty((draws, 2))
    for row in means:
        index = random.choice(len(hits), batch, replace=False, shuffle=False)
        row[:] = confidence[index].mean(), hits[index].mean()
    # Accuracies lie on the lattice of 1 / batch: spread over one cell of it, which a smooth density needs.
    means[:, 1] += (random.random(draws) - 0.5) / batch
    return np.clip(means, 0, 1)


def _limits(points: np.ndarray) -> tuple[float, float]:
    """Return the limits of both axes for points with coordinates in 0..1."""
    return max(points.min() - 0.05, 0.0), min(points.max() + 0.05, 1.0)


def _cells(values: np.ndarray) -> np.ndarray:
    """Return the edges of cells that are as fine as the spread of values needs, and reach beyond them."""
    reach = 0.2 * np.ptp(values) + 0.005
    return np.linspace(values.min() - reach, values.max() + reach, 61)


def _smoothed(values: np.ndarray, width: float) -> np.ndarray:
    """Smooth each column of a table with a Gaussian of a width in cells."""
    reach = np.arange(-int(4 * width), int(4 * width) + 1)
    kernel = np.exp(-0.5 * (reach / width) ** 2)
    return np.apply_along_axis(np.convolve, 0, values, kernel / kernel.sum(), mode="same")
