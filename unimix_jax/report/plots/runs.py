"""Pictures of runs: curves of training, test errors."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from unimix_jax.errors import UserError
from unimix_jax.report.plots.drawing import fitting_name, in_turn, log_scale, short_name, subplots
from unimix_jax.report.style import BLUE, CYCLE, in_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDEST = 11.0  # inches of a picture


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
    """Draw the test errors of several runs with intervals.

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


def errors_by_imbalance(errors: dict[str, dict[float, Sequence[float]]], title: str = "Test error") -> "Figure":
    """Draw test errors by imbalance and method, the best and the worst method marked (the paper's Fig. D1).

    Args:
      errors: method -> imbalance -> errors of its seeds, in 0..1.
      title: of the picture.

    Returns:
      The figure, see `errors_side_by_side`.

    Raises:
      UserError: no error, or one outside of 0..1.
    """
    return errors_side_by_side({title: errors})


@in_style
def errors_side_by_side(panels: dict[str, dict[str, dict[float, Sequence[float]]]]) -> "Figure":
    """Draw test errors by imbalance and method for several data sets, a panel each (the paper's Fig. D1).

    A mark is the mean over the seeds, its bar reaches one standard deviation (divisor n - 1) to both sides. At each
    imbalance a ring marks the methods with the lowest and the highest mean.

    Args:
      panels: title -> method -> imbalance -> errors of its seeds, in 0..1; a method may lack an imbalance.

    Returns:
      The figure.

    Raises:
      UserError: no error, or one outside of 0..1.
    """
    from matplotlib.lines import Line2D

    methods = list(dict.fromkeys(name for errors in panels.values() for name in errors))
    values = [e for errors in panels.values() for each in errors.values() for some in each.values() for e in some]
    if not values or not all(0 <= error <= 1 for error in values):
        wrong = next((error for error in values if not 0 <= error <= 1), "none")
        raise UserError(f"an error is {wrong}; panels must hold errors in 0..1, such as {{'erm': {{100: [.28, .3]}}}}")
    imbalances = {t: sorted({i for each in errors.values() for i in each}) for t, errors in panels.items()}
    groups = sum(map(len, imbalances.values()))
    widths = [max(2.6, (0.3 * len(methods) + 0.3) * len(imbalances[title])) for title in panels]
    width = min(sum(widths) + 0.7 * len(panels), _WIDEST)
    columns = min(int(width / 1.6), len(methods))
    height = 3.4 + 0.19 * -(-len(methods) // columns)
    figure, axes = subplots(width, height, 1, len(panels), squeeze=False, width_ratios=widths)
    word = 0.33 * groups / (width - 0.7 * len(panels))  # the width of a word, in units of the x axis
    style = {name: (colour, marker) for (name, _), colour, marker in in_turn(dict.fromkeys(methods))}
    for axis, (title, errors) in zip(axes[0], panels.items(), strict=True):
        for position, imbalance in enumerate(imbalances[title]):
            if position % 2 == 0:
                axis.axvspan(position - 0.5, position + 0.5, color="#F3F4F6", zorder=0)
            _draw_group(axis, position, {m: errors.get(m, {}).get(imbalance, ()) for m in methods}, style, word)
        axis.set_xticks(range(len(imbalances[title])), [f"{imbalance:g}" for imbalance in imbalances[title]])
        axis.set(title=short_name(title, 40), xlabel="imbalance of the training images", ylabel="test error, %")
        axis.set_xlim(-0.5, len(imbalances[title]) - 0.5)
        axis.grid(visible=False, axis="x")
        axis.margins(y=0.28)  # room for the words of the best and the worst
    handles = [
        Line2D(
            [],
            [],
            linestyle="none",
            color=style[name][0],
            marker=style[name][1],
            label=fitting_name(name, (width - 0.2) / columns - 0.55, 8) or " ",
        )
        for name in methods
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=columns)
    return figure


def _draw_group(axis, position: int, errors: dict[str, Sequence[float]], style: dict, word: float) -> None:
    """Draw the errors of all methods at one imbalance, around a position of the x axis, where a word is so wide."""
    slot = 0.84 / len(errors)
    means, reach, places = [], [], []
    for i, (name, of_seeds) in enumerate(errors.items()):
        if not len(of_seeds):
            continue
        percent = 100 * np.asarray(of_seeds, np.float64)
        places.append(position + (i - (len(errors) - 1) / 2) * slot)
        means.append(percent.mean())
        reach.append(percent.std(ddof=1) if len(percent) > 1 else 0.0)
        colour, marker = style[name]
        bars = {"yerr": reach[-1], "capsize": 3, "elinewidth": 1.2} if len(percent) > 1 else {}
        axis.errorbar(places[-1], means[-1], fmt=marker, color=colour, markersize=5.5, **bars)
    means, reach, places = map(np.array, (means, reach, places))
    if len(means) < 2 or means.min() == means.max():
        return
    for label, at, end, side in (
        ("best", means.argmin(), means - reach, -1),
        ("worst", means.argmax(), means + reach, 1),
    ):
        axis.plot(places[at], means[at], marker="o", markersize=11, color="black", fillstyle="none", markeredgewidth=1)
        beside = end[abs(places - places[at]) < word]  # what the word must not lie upon
        axis.annotate(
            f"{label}\n{means[at]:.1f}",
            (places[at], side * max(side * beside)),
            xytext=(0, 8 * side),
            textcoords="offset points",
            ha="center",
            va="bottom" if side > 0 else "top",
            fontsize=7,
            annotation_clip=False,
        )


def _series(lines: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the epochs and values of the lines that have a number under `key`."""
    points = [(line["epoch"], line[key]) for line in lines if line.get(key) is not None]
    x, y = np.array(points, np.float64).reshape(-1, 2).T
    return x, y
