"""What the plots have in common: figures and their files, colours in turn, names that fit, ticks."""

import functools
import io
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from unimix_jax.report.style import CYCLE, in_style

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

LABELLED = 30  # classes whose names are written out at most
_LONGEST = 60  # characters of a name at most


@in_style
def image(figure: "Figure", kind: str, dpi: int = 150) -> bytes:
    """Return a figure as the content of a "png" or "pdf" file; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    metadata = {"CreationDate": None} if kind == "pdf" else {"Software": None}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands for what the font has not
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
    return buffer.getvalue()


def subplots(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple["Figure", "Axes | np.ndarray"]:
    """Return a figure, whose size is in inches, and its axes; it has no window and no global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def grid(panels: int, most: int = 3) -> tuple[int, int]:
    """Return the rows and columns of a number of panels: as few rows as can be, and rows of equal length."""
    rows = -(-panels // most)
    return rows, -(-panels // rows)


def label_axes(figure: "Figure", axes: "np.ndarray", x: str, y: str) -> None:
    """Label axes that all show the same: y at the left of each row, x once below all."""
    for row in axes:
        row[0].set_ylabel(y)
    if axes.size == 1:
        axes[0, 0].set_xlabel(x)
    else:
        figure.supxlabel(x, fontsize="medium")


def in_turn(runs: dict) -> Iterator[tuple[tuple, str, str]]:
    """Yield the items of a dict with a colour and a marker, whose pair is unique for the first 36 items."""
    for i, item in enumerate(runs.items()):
        yield item, CYCLE[i % len(CYCLE)], "os^Dvx"[(i + i // len(CYCLE)) % 6]


def short_name(name: str, length: int = 14) -> str:
    """Shorten a user's name in its middle, and escape characters that matplotlib would interpret."""
    name = "".join(c if c.isprintable() else " " for c in name)
    half = (length - 1) // 2
    name = name if len(name) <= length else f"{name[: length - 1 - half]}…{name[-half:]}"
    return (f" {name}" if name.startswith("_") else name).replace("$", r"\$")


def fitting_name(name: str, inches: float, points: float, bold: bool = False) -> str:
    """Shorten a user's name in its middle until it is no wider than a number of inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=points, weight="bold" if bold else "normal")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        for length in range(min(len(name), _LONGEST), 2, -1):
            shortened = short_name(name, length)
            if text_to_path.get_text_width_height_descent(shortened, font, ismath=False)[0] <= 72 * inches:
                return shortened
    return short_name(name, 3)


def fitting_title(name: str, inches: float) -> str:
    """Return a user's name as the title of a panel so wide: on two lines if it is longer, each shortened if needed."""
    fits = functools.partial(fitting_name, inches=inches, points=10, bold=True)
    first, *others = name.split(" ")
    while others and fits(longer := f"{first} {others[0]}") == short_name(longer, len(longer)):
        first = longer
        del others[0]
    return "\n".join(fits(line) for line in (first, " ".join(others)) if line)


def log_scale(axis: "Axis", set_scale: Callable[[str], None]) -> None:
    """Make an axis logarithmic, with numbers written out."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    set_scale("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def whole_ticks(number: int) -> "MaxNLocator":
    """Return a locator of so many ticks at most, at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(number, integer=True)
