"""Where noise goes: points coloured by the cell of the checkerboard they land in (Fig. 2)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdm_core.figures.style import FAINT, WIDTH, panels, short, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = NDArray[np.floating[Any]]
"""(n, 2)."""

CELLS, SIDE, REACH = 4, 2.0, 4.0
"""Cells a side, a cell's width, and the board's: [-REACH, REACH]²."""
LIMIT, NOISE_LIMIT = 5.0, 3.6
# Tol's "muted" colours, safe for colour-blind eyes, for the 8 dark cells, the darkest three lighter
# so that they are seen on black; in this order cells that share a corner differ much.
DARK = ("#6355c8", "#ddaa33", "#44aa99", "#cc6677", "#1f8a45", "#b03080", "#88ccee", "#999933")
OFF = "#a0a0a0"


def noise_map(
    teacher: Points, students: Mapping[str, Points], noise: Points | None = None,
    source: str = "teacher",
) -> "Figure":
    """Panels of noise (if given), teacher and students, the same point in the same colour.

    The colour is the cell in which the teacher's sample lies; gray are those that miss the board's
    dark cells. Where a student's cell has another colour than the teacher's, it maps that noise
    elsewhere.

    Args:
        teacher: samples (n, 2).
        students: by name, samples (n, 2) of the same noise in the same order.
        noise: unit-variance noise (n, 2).
        source: what the teacher's panel is called.
    """
    clouds = [(source, teacher), *students.items()]
    extra = 0 if noise is None else 1
    count = len(clouds) + extra
    # In one row as long as a panel can still be read on a phone.
    columns = count if count <= 4 else 3
    figure, axes = panels(count, columns, WIDTH, WIDTH / columns + 0.25)
    colours = cell_colours(teacher)
    with styled():
        if noise is not None:
            cloud(axes[0], "noise", noise, colours, NOISE_LIMIT)
        for axis, (name, points) in zip(axes[extra:], clouds, strict=True):
            board(axis)
            cloud(axis, name, points, colours, LIMIT)
        for axis in axes:  # what there is to see, the board shows
            axis.set(xticks=(), yticks=())
    return figure


def cell_colours(points: Points) -> NDArray[np.str_]:
    """The colour (n,) of the cell in which each point (n, 2) lies."""
    column, row = np.floor((points + REACH) / SIDE).astype(int).T
    inside = (column >= 0) & (column < CELLS) & (row >= 0) & (row < CELLS)
    dark = inside & ((column + row) % 2 == 0)
    # Every column has two dark cells: rows 0 and 2, or 1 and 3.
    index = np.where(dark, 2 * column + row // 2, len(DARK))
    return np.array([*DARK, OFF])[index]


def board(axis: "Axes") -> None:
    """The dark cells, faintly, behind the points."""
    from matplotlib.patches import Rectangle

    for column in range(CELLS):
        for row in range(column % 2, CELLS, 2):
            corner = (column * SIDE - REACH, row * SIDE - REACH)
            axis.add_patch(Rectangle(corner, SIDE, SIDE, facecolor=FAINT, linewidth=0, zorder=0))
    axis.add_patch(Rectangle((-REACH, -REACH), 2 * REACH, 2 * REACH, fill=False,
                             edgecolor="#80808080", linewidth=0.8, zorder=0))


def cloud(
    axis: "Axes", name: str, points: Points, colours: NDArray[np.str_], limit: float
) -> None:
    """One panel, which says how many points it cannot show.

    Args:
        points: (n, 2).
        colours: (n,).
        limit: the panel shows [-limit, limit]².
    """
    axis.scatter(points[:, 0], points[:, 1], c=colours.tolist(), s=2.5, linewidths=0)
    outside = int((np.abs(points) > limit).any(axis=1).sum())
    axis.set_title(short(name, 20) + (f" ({outside} outside)" if outside else ""))
    axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    ticks = np.arange(-4, 5, 4) if limit > REACH else np.arange(-2, 3, 2)
    axis.set_xticks(ticks)
    axis.set_yticks(ticks)
    axis.grid(False)
    axis.spines[:].set_visible(True)
    axis.spines[:].set_color("#80808080")
