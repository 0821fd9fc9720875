"""The look of every figure: readable defaults, colours that survive colour blindness, safe saving."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from fairchem_piwsl.files import whole_file

# Okabe and Ito's palette, dark colours first; black is kept for references.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999933")
REFERENCE = "#000000"
#: cells of a heat map that have no value, apart from white ones
MISSING = "#D9D9D9"
MARKERS = "osD^vPX"
STYLE: Any = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "savefig.dpi": 150,
}


@contextmanager
def figure(width: float = 6.0, height: float = 4.2) -> Iterator[Figure]:
    """A figure in the project's style, independent of pyplot's global state and of any display."""
    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def colour(number: int) -> str:
    """The colour of curve `number`."""
    return COLOURS[number % len(COLOURS)]


def marker(number: int) -> str:
    """The marker of curve `number`."""
    return MARKERS[number % len(MARKERS)]


def log_scale(axis: Any) -> None:
    """A logarithmic axis with plain numbers at its ticks, few enough to stand beside each other."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    fine = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    for subs in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), fine):  # as few as give three numbers
        locator = LogLocator(subs=subs, numticks=9)
        if low > 0 and sum(low <= tick <= high for tick in locator.tick_values(low, high)) >= 3:
            break
    axis.set_major_locator(locator)
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def diagonal(axes: Any, low: float, high: float) -> None:
    """Both axes from `low` to `high` in one scale, and the line on which they are equal."""
    limits = (low, high)
    axes.plot(limits, limits, color=REFERENCE, linewidth=0.8, zorder=1)
    axes.set(xlim=limits, ylim=limits, aspect="equal")


def save(fig: Figure, path: Path, **how: Any) -> Path:
    """Write a PNG, whole or not at all; `how` goes to matplotlib's `savefig`."""
    with whole_file(path) as file:
        fig.savefig(file, format="png", **how)
    return path
