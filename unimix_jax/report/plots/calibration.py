"""Pictures of calibration: reliability diagrams, and the joint density of accuracy and confidence."""

from typing import TYPE_CHECKING

import numpy as np

from unimix_jax import metrics
from unimix_jax.errors import UserError
from unimix_jax.report.plots.drawing import fitting_name, grid, subplots, whole_ticks
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
        upper.set(title=f"{fitting_name(title, figure_width / columns - 0.75, 10, bold=True)}\nECE {100 * error:.1f} %")
        upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        upper.tick_params(labelbottom=False)
        lower.bar(left, bins.count, width=width, align="edge", color=GREY, edgecolor="white", linewidth=0.6)
        lower.set(xlabel="confidence", ylabel="images", xlim=(0, 1))
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


@in_style
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
    batch, random = min(batch, len(hits)), np.random.Generator(np.random.Philox(key=seed))
    means = np.empty((draws, 2))
    for row in means:
        index = random.choice(len(hits), batch, replace=False, shuffle=False)
        row[:] = confidence[index].mean(), hits[index].mean()
    # Accuracies lie on the lattice of 1 / batch: spread over one cell of it, which a smooth density needs.
    means[:, 1] += (random.random(draws) - 0.5) / batch
    means = np.clip(means, 0, 1)
    low, high = max(means.min() - 0.05, 0), min(means.max() + 0.05, 1)
    edges = np.linspace(low, high, 61)
    counts, _, _ = np.histogram2d(*means.T, bins=[edges, edges])
    counts = _smoothed(_smoothed(counts, 1.5).T, 1.5).T
    figure, axis = subplots(3.9, 3.6)
    centres = (edges[:-1] + edges[1:]) / 2
    levels = np.linspace(0.05, 1, 9) * counts.max()
    areas = axis.contourf(centres, centres, counts.T, levels=levels, cmap="cividis")
    figure.colorbar(areas, ax=axis, label="density", ticks=[])
    axis.plot([low, high], [low, high], color=GREY, linestyle="--", linewidth=1)
    axis.plot(
        confidence.mean(), hits.mean(), marker="+", markersize=10, color=RED, linestyle="none", label="all images"
    )
    axis.set(title="Mini-batches", xlim=(low, high), ylim=(low, high))
    axis.set(xlabel=f"mean confidence of {batch} images", ylabel=f"accuracy of {batch} images")
    axis.set_aspect("equal")
    axis.legend(loc="upper left")
    return figure


def _smoothed(values: np.ndarray, width: float) -> np.ndarray:
    """Smooth each column of a table with a Gaussian of a width in cells."""
    reach = np.arange(-int(4 * width), int(4 * width) + 1)
    kernel = np.exp(-0.5 * (reach / width) ** 2)
    return np.apply_along_axis(np.convolve, 0, values, kernel / kernel.sum(), mode="same")
