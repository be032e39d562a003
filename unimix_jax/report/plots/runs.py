"""Pictures of runs: curves of training, test errors."""

from typing import TYPE_CHECKING

import numpy as np

from unimix_jax.report.plots.drawing import fitting_name, in_turn, log_scale, short_name, subplots
from unimix_jax.report.style import BLUE, CYCLE, in_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@in_style
def training_curves(runs: dict[str, list[dict]]) -> "Figure":
    """Draw loss, accuracy and ECE over the epochs, from the lines of metrics.jsonl.

    Args:
      runs: name -> lines; lines with a `split` are evaluations, drawn with marks. Of several runs each has a colour.

    Returns:
      The figure.
    """
    alone = len(runs) == 1
    lines_of_legend = 0 if alone else -(-len(runs) // 3)
    figure, axes = subplots(9.0, 3.0 + 0.19 * lines_of_legend, 1, 3)
    for (run, lines), colour, _ in in_turn(runs):
        steps = [line for line in lines if "split" not in line]
        for axis, key, scale in ((axes[0], "loss", 1), (axes[1], "accuracy", 100)):
            x, y = _series(steps, key)
            label = "training" if alone else fitting_name(run, 2.4, 8) or " " if axis is axes[0] else None
            axis.plot(x, scale * y, color=colour, alpha=0.6, linewidth=1, label=label)
        for i, split in enumerate(sorted({line["split"] for line in lines if "split" in line})):
            evaluations = [line for line in lines if line.get("split") == split]
            style = {"marker": "os^"[i % 3], "markersize": 3, "color": CYCLE[1 + i] if alone else colour}
            for axis, key in ((axes[1], "accuracy"), (axes[2], "ece")):
                x, y = _series(evaluations, key)
                axis.plot(x, 100 * y, label=short_name(split) if alone else None, **style)
    titles = ("Training loss", "Accuracy, %", "ECE, %")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="epoch")
    if all(min(line.get_ydata(), default=1) > 0 for line in axes[0].lines):
        log_scale(axes[0].yaxis, axes[0].set_yscale)
    if not alone:
        figure.legend(loc="outside upper left", ncols=3)
    for axis in axes[1:] if alone else ():
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    return figure


@in_style
def error_bars(runs: dict[str, tuple[float, tuple[float, float] | None]]) -> "Figure":
    """Draw the test errors of several runs with intervals (the paper's Fig. D1).

    Args:
      runs: name -> (accuracy, its interval or None).

    Returns:
      The figure.
    """
    figure, axis = subplots(5.6, 0.8 + 0.32 * len(runs))
    errors = [100 * (1 - accuracy) for accuracy, _ in runs.values()]
    positions = np.arange(len(runs))[::-1]
    axis.barh(positions, errors, color=BLUE, height=0.7)
    farthest = max(errors)
    for y, error, (_, interval) in zip(positions, errors, runs.values(), strict=True):
        low, high = (error, error) if interval is None else (100 * (1 - interval[1]), 100 * (1 - interval[0]))
        axis.plot([low, high], [y, y], color="black", linewidth=1.2)
        axis.annotate(f"{error:.1f}", (high, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
        farthest = max(farthest, high)
    axis.set_yticks(positions, [fitting_name(name, 2.8, 9) for name in runs])
    axis.set(title="Test error", xlabel="test error, %", xlim=(0, 1.12 * max(farthest, 1)))
    axis.grid(visible=False, axis="y")
    return figure


def _series(lines: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the epochs and values of the lines that have a number under `key`."""
    points = [(line["epoch"], line[key]) for line in lines if line.get(key) is not None]
    x, y = np.array(points, np.float64).reshape(-1, 2).T
    return x, y
