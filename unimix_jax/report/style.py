"""The style of the project's plots: colours and settings of matplotlib."""

import functools
from collections.abc import Callable

BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
GREY = "#6B7280"
_STYLE = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E5E7EB",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,  # text stays text
}


def in_style(draw: Callable) -> Callable:
    """Let a function draw in the style of this module, independent of the user's own settings."""

    @functools.wraps(draw)
    def styled(*arguments, **options):
        from matplotlib import rc_context, rcParamsDefault

        # The backend is the user's; it draws windows, and there are none here.
        with rc_context({k: v for k, v in rcParamsDefault.items() if "backend" not in k} | _STYLE):
            return draw(*arguments, **options)

    return styled
