"""Pictures of classes: confusion matrices, accuracy by training images, class distributions."""

from typing import TYPE_CHECKING

import numpy as np

from unimix_jax.report.plots.drawing import LABELLED, fitting_name, grid, in_turn, log_scale, short_name, subplots
from unimix_jax.report.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, in_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS, _LINES = (GREY, BLUE, GREEN, RED, ORANGE, PURPLE), ("-", "--", "-.", "-", ":", "--")
_MARKS = 25  # of a distribution over many classes
_BLOCKS = 300  # rows and columns of a confusion matrix at most


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
    figure, axis = subplots(4.6, 4.0)
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
    if len(order) <= LABELLED:
        ticks, short = range(len(order)), [short_name(names[c]) for c in order]
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
    figure, axis = subplots(5.2, 3.4)
    spread = [1.0]  # of each run, largest count / smallest
    for (run, (counts, accuracy)), colour, marker in in_turn(runs):
        kept = ~np.isnan(accuracy) & (counts > 0)  # without images there is no place on a logarithmic axis
        x, y = counts[kept], 100 * accuracy[kept]
        few = len(x) <= LABELLED
        options = {"color": colour, "marker": marker, "alpha": 0.85 if len(x) <= 100 else 0.4}
        axis.plot(x, y, linestyle="none", markersize=5 if len(x) <= 100 else 3, **options)
        order = np.argsort(x, kind="stable")
        groups = np.array_split(order, max(len(order), 1) if few else 8)
        middle = [[np.exp(np.log(x[g]).mean()), y[g].mean()] for g in groups if len(g)]
        axis.plot(*np.array(middle).reshape(-1, 2).T, color=colour, label=fitting_name(run, 3.4, 8) or " ")
        spread += [x.max() / x.min()] if len(x) else []
        if names is not None and len(runs) == 1 and few:
            for rank, (name, at) in enumerate(zip(np.array(names, object)[kept][order], order, strict=True)):
                above = (3, 4) if rank % 2 else (3, -9)  # of neighbours one above, one below
                axis.annotate(short_name(name), (x[at], y[at]), xytext=above, textcoords="offset points", fontsize=7)
    if max(spread) > 1:
        log_scale(axis.xaxis, axis.set_xscale)
    axis.set(title="Accuracy against training images", ylim=(-3, 106))
    axis.set(xlabel="training images of the class", ylabel="test accuracy of the class, %")
    if len(runs) > 1:
        axis.legend()
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
    rows, columns = grid(len(panels))
    figure, axes = subplots(3.7 * columns, 3.1 * rows, rows, columns, squeeze=False)
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


@in_style
def class_distributions_side_by_side(panels: dict[str, list[dict]]) -> "Figure":
    """Draw several class distributions into each panel, closed forms as lines, exact ones as marks (Fig. A1).

    Args:
      panels: title -> dicts of title; y float[M] and values float[M], the closed form on the scale of a distribution
        over the classes; exact (float[K] over the classes, the most frequent first). At most six a panel, with the
        same titles in each.

    Returns:
      The figure.
    """
    from matplotlib.lines import Line2D

    rows, columns = grid(len(panels))
    figure, axes = subplots(3.3 * columns, 2.7 * rows + 0.4, rows, columns, squeeze=False, sharey="row")
    for position, (axis, (title, curves)) in enumerate(zip(axes.flat, panels.items(), strict=False)):
        # The later curves are thinner, so that one which lies upon another leaves it to be seen.
        for i, (curve, colour, line, marker) in enumerate(zip(curves, _COLOURS, _LINES, "osx^Dv", strict=False)):
            classes = np.arange(1, len(curve["exact"]) + 1)
            shown = np.unique(np.linspace(0, len(classes) - 1, min(len(classes), _MARKS)).round().astype(int))
            style = {"color": colour, "label": curve["title"]}
            axis.plot(curve["y"], curve["values"], linestyle=line, linewidth=max(3.2 - i, 1.3), **style)
            size = {"markersize": (6.5, 4, 4.5, 4.5, 4, 4)[i], "markerfacecolor": "white" if i == 0 else colour}
            axis.plot(
                classes[shown], np.asarray(curve["exact"])[shown], linestyle="none", marker=marker, **size, **style
            )
        axis.set(title=title, xlabel="class, most frequent first")
        if position % columns == 0:
            axis.set_ylabel("probability")
    for row in axes:
        row[0].set_ylim(0, None)  # when all panels of the row are drawn
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    lines = axes[0, 0].lines
    kinds = [Line2D([], [], color="black"), Line2D([], [], color="black", linestyle="none", marker="o", markersize=4)]
    figure.legend(
        handles=[*zip(lines[::2], lines[1::2], strict=True), *kinds],
        labels=[*(line.get_label() for line in lines[::2]), "closed form, scaled", "exact"],
        loc="outside upper center",
        ncols=2 * columns,
    )
    return figure
