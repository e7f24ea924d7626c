"""Colors, markers, dashes and logarithmic axes that figures share.

Colors are those of Okabe and Ito (2008), which the color-blind tell apart, in an order of
falling lightness contrast; what is told by color is told by a marker or a dash too, for print in
gray.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatterMathtext, LogLocator, MaxNLocator, NullFormatter

BLUE, ORANGE, GREEN, PURPLE, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, BLACK)
MARKERS = ("o", "s", "^", "D", "v")
DASHES = ("-", "--", "-.", ":", "-")
GRAY = "#8c8c8c"
DARK = "#404040"


def label_decades(ax: Axes, which: str = "y") -> None:
    """Label a logarithmic axis for the limits that it has now: at least some three numbers."""
    low, high = ax.get_ylim() if which == "y" else ax.get_xlim()
    axis = ax.yaxis if which == "y" else ax.xaxis
    decades = np.log10(high / low)
    if decades > 2:
        axis.set_major_locator(LogLocator(base=10))
        axis.set_major_formatter(LogFormatterMathtext())
    else:
        by_parts = LogLocator(base=10, subs=(1.0, 2.0, 5.0))
        axis.set_major_locator(by_parts if decades > 1 else MaxNLocator(5))
        axis.set_major_formatter(lambda y, _: f"{y:.4g}")
    axis.set_minor_formatter(NullFormatter())
