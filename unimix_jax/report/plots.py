"""Plots from arrays: each function returns a matplotlib figure in one style.

The colours are those of Okabe and Ito, and cividis for areas: colour-blind readers, and readers of grey prints, can
tell them apart.
"""

import io
import warnings
from typing import TYPE_CHECKING

import numpy as np

from unimix_jax import metrics, names
from unimix_jax.errors import UserError
from unimix_jax.report.style import BLUE, CYCLE, GREY, RED, SKY, in_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "accuracy_by_count",
    "class_distributions",
    "confusion",
    "density",
    "error_bars",
    "image",
    "reliability",
    "training_curves",
]
__getattr__, __dir__ = names.of_module(__name__, __all__)

_BLOCKS = 300  # rows and columns of a confusion matrix at most
_LONGEST = 60  # characters of a name at most
_LABELLED = 30  # classes whose names are written out at most


@in_style
def image(figure: "Figure", kind: str, dpi: int = 150) -> bytes:
    """Return a figure as the content of a "png" or "pdf" file; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    metadata = {"CreationDate": None} if kind == "pdf" else {"Software": None}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands for what the font has not
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
    return buffer.getvalue()


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

    columns = 2 if len(panels) == 4 else min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure_width = 3.2 * columns if columns > 1 else 3.7  # at least as wide as the legend
    figure, axes = _figure(figure_width, 4.4 * rows, 2 * rows, columns, height_ratios=[3, 1] * rows, squeeze=False)
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
        upper.set(title=f"{_fitting(title, figure_width / columns - 0.75, 10, bold=True)}\nECE {100 * error:.1f} %")
        upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        upper.tick_params(labelbottom=False)
        lower.bar(left, bins.count, width=width, align="edge", color=GREY, edgecolor="white", linewidth=0.6)
        lower.set(xlabel="confidence", ylabel="images", xlim=(0, 1))
        lower.yaxis.set_major_locator(_ticks(3))
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
    figure, axis = _figure(3.9, 3.6)
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


@in_style
def confusion(matrix: np.ndarray, counts: np.ndarray | None, names: list[str], *, log: bool = False) -> "Figure":
    """Draw the confusion matrix, with classes sorted by training images (the paper's Fig. D4 to D7).

    Args:
      matrix: int[K, K], examples of each (label, predicted class).
      counts: int[K], training images; None keeps the order of the classes.
      names: K class names.
      log: show the logarithm of the shares, so that rare mistakes can be seen.

    Returns:
      The figure.
    """
    order = np.arange(len(names)) if counts is None else np.argsort(-np.asarray(counts), kind="stable")
    starts = np.linspace(0, len(order), min(len(order), _BLOCKS), endpoint=False).astype(np.int64)
    summed = np.add.reduceat(np.add.reduceat(matrix[np.ix_(order, order)], starts, axis=0), starts, axis=1)
    shares = summed / np.maximum(summed.sum(axis=1, keepdims=True), 1.0)
    figure, axis = _figure(4.6, 4.0)
    if log:
        floor = 1 / max(summed.sum(axis=1).max(), 1)
        picture = axis.imshow(np.log10(np.maximum(shares, floor / 2)), cmap="cividis", vmax=0)
        label = "share of the label's images, log10"
    else:
        picture = axis.imshow(shares, cmap="cividis", vmin=0, vmax=1)
        label = "share of the label's images"
    figure.colorbar(picture, ax=axis, label=label)
    axis.grid(visible=False)
    sorted_by = "" if counts is None else ", most training images first"
    axis.set(title="Log-confusion" if log else "Confusion", xlabel="predicted class", ylabel=f"label{sorted_by}")
    if len(order) <= _LABELLED:
        ticks, short = range(len(order)), [_short(names[c]) for c in order]
        turned = max(map(len, short)) > 2
        axis.set_xticks(ticks, short, rotation=90 if turned else 0, fontsize=7)
        axis.set_yticks(ticks, short, fontsize=7)
    return figure


@in_style
def accuracy_by_count(runs: dict[str, tuple[np.ndarray, np.ndarray]], names: list[str] | None = None) -> "Figure":
    """Draw the accuracy of each class against its training images.

    Args:
      runs: name -> (counts int[K], class accuracy float[K], nan for a class without test images).
      names: of the classes, written beside the points of a single run with few classes.

    Returns:
      The figure.
    """
    figure, axis = _figure(5.2, 3.4)
    spread = [1.0]  # of each run, largest count / smallest
    for (run, (counts, accuracy)), colour, marker in _styled(runs):
        kept = ~np.isnan(accuracy) & (counts > 0)  # without images there is no place on a logarithmic axis
        x, y = counts[kept], 100 * accuracy[kept]
        few = len(x) <= _LABELLED
        options = {"color": colour, "marker": marker, "alpha": 0.85 if len(x) <= 100 else 0.4}
        axis.plot(x, y, linestyle="none", markersize=5 if len(x) <= 100 else 3, **options)
        order = np.argsort(x, kind="stable")
        groups = np.array_split(order, max(len(order), 1) if few else 8)
        middle = [[np.exp(np.log(x[g]).mean()), y[g].mean()] for g in groups if len(g)]
        axis.plot(*np.array(middle).reshape(-1, 2).T, color=colour, label=_fitting(run, 3.4, 8) or " ")
        spread += [x.max() / x.min()] if len(x) else []
        if names is not None and len(runs) == 1 and few:
            for rank, (name, at) in enumerate(zip(np.array(names, object)[kept][order], order, strict=True)):
                above = (3, 4) if rank % 2 else (3, -9)  # of neighbours one above, one below
                axis.annotate(_short(name), (x[at], y[at]), xytext=above, textcoords="offset points", fontsize=7)
    if max(spread) > 1:
        _log_scale(axis.xaxis, axis.set_xscale)
    axis.set(title="Accuracy against training images", ylim=(-3, 106))
    axis.set(xlabel="training images of the class", ylabel="test accuracy of the class, %")
    if len(runs) > 1:
        axis.legend()
    return figure


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
    figure, axes = _figure(9.0, 3.0 + 0.19 * lines_of_legend, 1, 3)
    for (run, lines), colour, _ in _styled(runs):
        steps = [line for line in lines if "split" not in line]
        for axis, key, scale in ((axes[0], "loss", 1), (axes[1], "accuracy", 100)):
            x, y = _series(steps, key)
            label = "training" if alone else _fitting(run, 2.4, 8) or " " if axis is axes[0] else None
            axis.plot(x, scale * y, color=colour, alpha=0.6, linewidth=1, label=label)
        for i, split in enumerate(sorted({line["split"] for line in lines if "split" in line})):
            evaluations = [line for line in lines if line.get("split") == split]
            style = {"marker": "os^"[i % 3], "markersize": 3, "color": CYCLE[1 + i] if alone else colour}
            for axis, key in ((axes[1], "accuracy"), (axes[2], "ece")):
                x, y = _series(evaluations, key)
                axis.plot(x, 100 * y, label=_short(split) if alone else None, **style)
    titles = ("Training loss", "Accuracy, %", "ECE, %")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="epoch")
    if all(min(line.get_ydata(), default=1) > 0 for line in axes[0].lines):
        _log_scale(axes[0].yaxis, axes[0].set_yscale)
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
    figure, axis = _figure(5.6, 0.8 + 0.32 * len(runs))
    errors = [100 * (1 - accuracy) for accuracy, _ in runs.values()]
    positions = np.arange(len(runs))[::-1]
    axis.barh(positions, errors, color=BLUE, height=0.7)
    farthest = max(errors)
    for y, error, (_, interval) in zip(positions, errors, runs.values(), strict=True):
        low, high = (error, error) if interval is None else (100 * (1 - interval[1]), 100 * (1 - interval[0]))
        axis.plot([low, high], [y, y], color="black", linewidth=1.2)
        axis.annotate(f"{error:.1f}", (high, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
        farthest = max(farthest, high)
    axis.set_yticks(positions, [_fitting(name, 2.8, 9) for name in runs])
    axis.set(title="Test error", xlabel="test error, %", xlim=(0, 1.12 * max(farthest, 1)))
    axis.grid(visible=False, axis="y")
    return figure


@in_style
def class_distributions(panels: list[dict]) -> "Figure":
    """Draw the class distributions of Corollaries 1 to 3 (the paper's Fig. A1), one panel each.

    Args:
      panels: dicts of title; closed (label, y float[M], values float[M], on the scale of a distribution over the
        classes); exact and drawn (distributions float[K] over the classes, the most frequent first).

    Returns:
      The figure.
    """
    columns = 2 if len(panels) == 4 else len(panels)
    rows = -(-len(panels) // columns)
    figure, axes = _figure(3.7 * columns, 3.1 * rows, rows, columns, squeeze=False)
    for axis, panel in zip(axes.flat, panels, strict=True):
        positions = np.arange(1, len(panel["exact"]) + 1)
        thin = len(positions) > 40
        axis.bar(positions, panel["exact"], color=SKY, width=1.0 if thin else 0.8, label="exact")
        label, y, values = panel["closed"]
        axis.plot(y, values, color=RED, label=label)
        axis.plot(
            positions,
            panel["drawn"],
            color="black",
            marker=".",
            markersize=2 if thin else 5,
            linestyle="none",
            label="drawn",
        )
        axis.set(title=panel["title"], xlabel="class, most frequent first", ylabel="probability", ylim=(0, None))
        axis.legend()
    return figure


def _series(lines: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the epochs and values of the lines that have a number under `key`."""
    points = [(line["epoch"], line[key]) for line in lines if line.get(key) is not None]
    x, y = np.array(points, np.float64).reshape(-1, 2).T
    return x, y


def _styled(runs: dict):
    """Yield the items of a dict with a colour and a marker, whose pair is unique for the first 36 items."""
    for i, item in enumerate(runs.items()):
        yield item, CYCLE[i % len(CYCLE)], "os^Dvx"[(i + i // len(CYCLE)) % 6]


def _smoothed(values: np.ndarray, width: float) -> np.ndarray:
    """Smooth each column of a table with a Gaussian of a width in cells."""
    reach = np.arange(-int(4 * width), int(4 * width) + 1)
    kernel = np.exp(-0.5 * (reach / width) ** 2)
    return np.apply_along_axis(np.convolve, 0, values, kernel / kernel.sum(), mode="same")


def _short(name: str, length: int = 14) -> str:
    """Shorten a user's name in its middle, and escape characters that matplotlib would interpret."""
    name = "".join(c if c.isprintable() else " " for c in name)
    half = (length - 1) // 2
    name = name if len(name) <= length else f"{name[: length - 1 - half]}…{name[-half:]}"
    return (f" {name}" if name.startswith("_") else name).replace("$", r"\$")


def _fitting(name: str, inches: float, points: float, bold: bool = False) -> str:
    """Shorten a user's name in its middle until it is no wider than a number of inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=points, weight="bold" if bold else "normal")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        for length in range(min(len(name), _LONGEST), 2, -1):
            short = _short(name, length)
            if text_to_path.get_text_width_height_descent(short, font, ismath=False)[0] <= 72 * inches:
                return short
    return _short(name, 3)


def _log_scale(axis, set_scale) -> None:
    """Make an axis logarithmic, with numbers written out."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    set_scale("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _ticks(number: int):
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(number, integer=True)


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **options):
    """Return a figure, whose size is in inches, and its axes; it has no window and no global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)
