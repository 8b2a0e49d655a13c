"""What all figures share: size, type, and the colours of teacher and students."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 6.4
"""Inches. With 11-point type, a figure as wide as a phone's screen can still be read."""

# Figures have no ground of their own, so that they stand on light pages and on dark ones. What is
# written or drawn in them can be told from both.
INK, FAINT = "#767676", "#80808038"
TEACHER = "#808080"
# Okabe and Ito's colours, which people with any common colour blindness can tell apart, the blue
# lighter so that it is seen on black, without those that are too pale for thin lines on white.
STUDENTS = ("#1180c4", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def styled() -> AbstractContextManager[None]:
    """Within it, what is drawn has the style of the report, whatever the user's own settings."""
    from matplotlib import rc_context

    return rc_context({
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "figure.dpi": 200,
        "savefig.dpi": "figure",
        "font.family": "DejaVu Sans",  # comes with matplotlib: the same figures everywhere
        "font.size": 11,
        "axes.titlesize": 11,
        "axes.labelsize": 10,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.fontsize": 10,
        "legend.frameon": False,
        "axes.edgecolor": "#8c8c8c",
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": FAINT,
        "lines.linewidth": 1.6,
        "text.parse_math": False,  # names of students are not formulas
    })


def student_colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each student, by its place: the same in all figures of the same students."""
    return {name: STUDENTS[i % len(STUDENTS)] for i, name in enumerate(names)}


_place: ContextVar[int] = ContextVar("place", default=0)


@contextmanager
def drawn_in(place: int) -> Iterator[None]:
    """Within it, figures of a single student have the colour of the one in that place of all."""
    token = _place.set(place)
    try:
        yield
    finally:
        _place.reset(token)


def own_colour() -> str:
    """The colour of the student that a figure is about alone."""
    return STUDENTS[_place.get() % len(STUDENTS)]


def colour_beside(which: int = 0) -> str:
    """A colour for something else in such a figure, which neither its student nor, of a few, the
    next one has.

    Args:
        which: of several things.
    """
    return STUDENTS[(_place.get() + 2 + which) % len(STUDENTS)]


def panels(
    count: int, columns: int, width: float, panel_height: float
) -> tuple["Figure", list["Axes"]]:
    """A figure with `count` axes in rows of at most `columns`.

    Args:
        count: how many, at least one.
        columns: how many in a full row.
        width: of the figure, in inches.
        panel_height: of one row, in inches.
    """
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    with styled():
        figure = Figure(figsize=(width, rows * panel_height), layout="constrained")
        axes = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    return figure, axes


def short(name: str, length: int = 14) -> str:
    """A name that fits beside a picture."""
    return name if len(name) <= length else name[: length - 1] + "…"
