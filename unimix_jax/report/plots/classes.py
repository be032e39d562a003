"""Pictures of classes: confusion matrices, accuracy by training images, class distributions."""

from typing import TYPE_CHECKING

import numpy as np

from unimix_jax.errors import UserError
from unimix_jax.report.plots.drawing import (
    LABELLED,
    fitting_name,
    fitting_title,
    grid,
    in_turn,
    label_axes,
    log_scale,
    short_name,
    subplots,
    whole_ticks,
)
from unimix_jax.report.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, in_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS, _LINES = (GREY, BLUE, GREEN, RED, ORANGE, PURPLE), ("-", "--", "-.", "-", ":", "--")
_MARKS = 25  # of a distribution over many classes
_LABELLED_SMALL = 20  # the same where panels stand side by side
_BLOCKS = 300  # rows and columns of a confusion matrix at most


def confusion(matrix: np.ndarray, counts: np.ndarray | None, names: list[str], *, log: bool = False) -> "Figure":
    """Draw the confusion matrix of one model, see `confusions`.

    Args:
      matrix: int[K, K], examples of each (label, predicted class).
      counts: int[K], training images; None keeps the order of the classes.
      names: K class names.
      log: show the logarithm of the shares, so that rare mistakes can be seen.

    Returns:
      The figure.
    """
    return confusions({"Log-confusion" if log else "Confusion": (matrix, counts, names)}, log=log)


@in_style
def confusions(panels: dict[str, tuple[np.ndarray, np.ndarray | None, list[str]]], *, log: bool = False) -> "Figure":
    """Draw confusion matrices side by side, with the true class on the x axis (the paper's Fig. D4 to D7).

    A column shows the predictions for the test images of one class and sums to one. Classes are sorted by training
    images, the most frequent at the left and at the top.

    Args:
      panels: title -> matrix int[K, K], examples of each (label, predicted class); counts int[K], training images, or
        None, which keeps the order of the classes; K class names.
      log: show the logarithm of the shares, so that rare mistakes can be seen.

    Returns:
      The figure, with one colour bar for all panels.

    Raises:
      UserError: no panel.
    """
    if not panels:
        raise UserError("there is no model whose confusion matrix could be drawn; panels must hold one at least")
    rows, columns = grid(len(panels), 4 if len(panels) > 6 else 3)
    alone, side = len(panels) == 1, 4.0 if len(panels) == 1 else 2.5
    figure, axes = subplots(side * columns + 1, side * rows + 0.4, rows, columns, squeeze=False)
    shares = {title: _shares_of_labels(matrix, counts) for title, (matrix, counts, _) in panels.items()}
    written = [[short_name(names[c]) for c in _order(counts, names)] for _, counts, names in panels.values()]
    alike = all(names == written[0] for names in written)  # so that they need not stand at each panel
    # Half an example of the largest class stands for none.
    least = min(0.5 / max(matrix.sum(axis=1).max(), 1) for matrix, _, _ in panels.values())
    limits = {"vmin": np.log10(least), "vmax": 0} if log else {"vmin": 0, "vmax": 1}
    for i, (axis, (title, (_, counts, _)), names) in enumerate(zip(axes.flat, panels.items(), written, strict=False)):
        first = 0 if counts is None else 1  # the class with most training images is that of rank 1
        ends = (first - 0.5, first + len(names) - 0.5)
        shown = np.log10(np.maximum(shares[title].T, least)) if log else shares[title].T
        picture = axis.imshow(shown, cmap="cividis", extent=(*ends, *ends[::-1]), **limits)
        axis.grid(visible=False)
        axis.set_title(fitting_title(title, side - 0.4))
        turned = 90 if max(map(len, names)) > 2 else 0
        for ticks, rotation, at_edge in (
            (axis.xaxis, turned, i + columns >= len(panels)),
            (axis.yaxis, 0, i % columns == 0),
        ):
            if len(names) <= (LABELLED if alone else _LABELLED_SMALL):
                ticks.set_ticks(np.arange(len(names)) + first, names, rotation=rotation, fontsize=7 if alone else 6.5)
            else:
                ticks.set_major_locator(whole_ticks(5))
            if alike and not at_edge:
                ticks.set_tick_params(labelbottom=False, labelleft=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    ranked = all(counts is not None for _, counts, _ in panels.values())
    label_axes(figure, axes, f"true class{', most training images first' if ranked else ''}", "predicted class")
    bar = figure.colorbar(picture, ax=axes, label="share of the column", aspect=20 * rows)
    if log:
        powers = np.arange(np.ceil(np.log10(least)), 1)
        bar.set_ticks(powers, labels=[f"{10**power:g}" for power in powers])
    return figure


def _order(counts: np.ndarray | None, names: list[str]) -> np.ndarray:
    """Return the classes in the order of a confusion matrix, int[K]."""
    return np.arange(len(names)) if counts is None else np.argsort(-np.asarray(counts), kind="stable")


def _shares_of_labels(matrix: np.ndarray, counts: np.ndarray | None) -> np.ndarray:
    """Return the shares of the predictions for each label, in order, of many classes in blocks; a row sums to one."""
    order = _order(counts, range(len(matrix)))
    starts = np.linspace(0, len(order), min(len(order), _BLOCKS), endpoint=False).astype(np.int64)
    summed = np.add.reduceat(np.add.reduceat(matrix[np.ix_(order, order)], starts, axis=0), starts, axis=1)
    return summed / np.maximum(summed.sum(axis=1, keepdims=True), 1.0)


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
