"""States between noise and sample, the pairs' and a student's, and how far they are apart."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdm_core.figures.grid import PLOT, PLOT_LABELS, Row, above_plots, draw_rows
from kdm_core.figures.scatter import NOISE_LIMIT, cell_colours
from kdm_core.figures.style import TEACHER, WIDTH, own_colour, short, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

States = NDArray[np.float32]
"""(n, k, *shape), noises × positions."""


def path_of_images(
    stored: States, student: States, columns: list[float], positions: list[float],
    share: list[float], names: tuple[str, str],
) -> "Figure":
    """For each noise a row of the stored states and one of the student's; the error below.

    Args:
        stored, student: images (n, k, C, H, W), drawn in [-1, 1].
        columns: (k,) their positions.
        positions, share: (m,) the curve.
        names: of what is stored, and the student's.
    """
    above, below = short(names[0]), short(names[1])
    blocks = [[Row(above, TEACHER, a), Row(below, own_colour(), b)]
              for a, b in zip(stored, student, strict=True)]
    figure, (picture,), (plot,) = above_plots([blocks], 1, titled=True)
    with styled():
        draw_rows(picture, blocks, [f"{position:.2f}" for position in columns])
        _errors(plot, positions, share)
    return figure


def path_of_points(
    stored: States, student: States, columns: list[float], positions: list[float],
    share: list[float], names: tuple[str, str], samples: NDArray[np.float32],
) -> "Figure":
    """A row of panels of the stored states and one of the student's; the error below.

    A point has one colour in all panels: that of the cell in which its stored sample lies.

    Args:
        stored, student: points (n, k, 2) of unit variance.
        columns, positions, share, names: as of `path_of_images`.
        samples: (n, 2), those stored, in their own range.
    """
    from matplotlib.figure import Figure

    heights = [2 * WIDTH / len(columns) + 0.2, PLOT + 0.6 * PLOT_LABELS]
    with styled():
        figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
        above, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
        colours = cell_colours(samples)
        panels = above.subplots(2, len(columns))
        for row, (states, name, colour) in enumerate(((stored, names[0], TEACHER),
                                                      (student, names[1], own_colour()))):
            for column, position in enumerate(columns):
                _cloud(panels[row][column], states[:, column], colours)
                if row == 0:
                    panels[row][column].set_title(f"{position:.2f}")
            panels[row][0].set_ylabel(short(name), color=colour, fontweight="bold")
        _errors(lower.add_subplot(), positions, share)
    return figure


def _cloud(axis: "Axes", points: NDArray[np.float32], colours: NDArray[np.str_]) -> None:
    axis.scatter(points[:, 0], points[:, 1], c=colours.tolist(), s=3, linewidths=0)
    axis.set(xlim=(-NOISE_LIMIT, NOISE_LIMIT), ylim=(-NOISE_LIMIT, NOISE_LIMIT), aspect="equal",
             xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(True)
    axis.spines[:].set_color("#80808080")


def _errors(axis: "Axes", positions: list[float], share: list[float]) -> None:
    """The error's share at every position, noise at the left as in the picture."""
    from matplotlib.ticker import PercentFormatter

    axis.plot(positions, share, color=own_colour(), marker="o", markersize=4)
    axis.axhline(1, color="#777777", linewidth=1.2, linestyle=":", label="unrelated noise")
    axis.set(xlim=(1.02, -0.02), xlabel="position, from noise (1) to sample (0)",
             ylabel="MSE ÷ unrelated")
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.legend(loc="best")
