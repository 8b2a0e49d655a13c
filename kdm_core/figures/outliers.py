"""Outliers among samples and in the noise plane (Figs. 5c and 13)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdm_core.figures.scatter import DARK, LIMIT, NOISE_LIMIT, Points, board, cloud
from kdm_core.figures.style import WIDTH, panels, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Marked = tuple[Points, NDArray[np.integer[Any]], NDArray[np.bool_]]
"""Samples (n, 2), the cell of each (n,), and whether it is an outlier (n,)."""


def outlier_map(noise: Points, sets: Mapping[str, Marked]) -> "Figure":
    """Samples above the noise that they were made of, a column for each set, outliers crossed.

    Args:
        noise: (n, 2).
        sets: by name, samples of that noise.
    """
    columns = len(sets)
    figure, axes = panels(2 * columns, columns, WIDTH, WIDTH / columns + 0.2)
    with styled():
        for column, (name, (samples, cells, found)) in enumerate(sets.items()):
            upper, lower = axes[column], axes[columns + column]
            colours = np.array(DARK)[cells]
            board(upper)
            cloud(upper, f"{name}: {found.sum()} ×", samples, colours, LIMIT)
            cloud(lower, "their noise", noise, colours, NOISE_LIMIT)
            for axis, points in ((upper, samples), (lower, noise)):
                _cross(axis, points[found])
    return figure


def _cross(axis: "Axes", points: Points) -> None:
    axis.scatter(points[:, 0], points[:, 1], marker="x", s=22, c="black", linewidths=1.1)
