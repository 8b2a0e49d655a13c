"""Walks between two noises, by both models, and how even their steps are."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdm_core.figures.grid import PLOT, PLOT_LABELS, Row, above_plots, draw_rows
from kdm_core.figures.style import (
    STUDENTS,
    TEACHER,
    WIDTH,
    colour_beside,
    own_colour,
    short,
    styled,
)
from kdm_core.figures.vicinity import plane

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Walks = Mapping[str, NDArray[np.float32]]
"""By "teacher", "student" and perhaps "latent": samples (n, k, *shape), walks × positions."""
Steps = Mapping[str, NDArray[np.float64]]
"""By the same, the lengths (m, s) of the steps of m walks, of which the mean is drawn."""


def interpolation_of_images(walks: Walks, steps: Steps, name: str) -> "Figure":
    """For each pair of noises a row of images for every kind of walk; the steps below.

    Args:
        walks: images (n, k, C, H, W) in [-1, 1].
        steps: their lengths.
        name: the student's.
    """
    blocks = [[Row(_title(key, name), _colour(key), samples[i]) for key, samples in walks.items()]
              for i in range(len(walks["teacher"]))]
    figure, (picture,), (below,) = above_plots([blocks], 1)
    with styled():
        draw_rows(picture, blocks)
        _steps(below, steps, name)
        figure.legend(loc="outside lower center", ncols=len(steps))
    return figure


def interpolation_of_points(
    walks: Walks, steps: Steps, name: str, real: NDArray[np.float32]
) -> "Figure":
    """Panels of the walks of noise and of samples; the steps below.

    Args:
        walks: points (n, k, 2), of "noise", too.
        steps: their lengths.
        name: the student's.
        real: points (m, 2), drawn faintly behind the samples.
    """
    from matplotlib.figure import Figure

    rows = -(-len(walks) // 2)
    heights = [rows * WIDTH / 2, PLOT + PLOT_LABELS]
    with styled():
        figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
        above, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
        for i, (key, points) in enumerate(walks.items()):
            axis = above.add_subplot(rows, 2, i + 1)
            if key == "noise":
                plane(axis, key, None)
            else:
                plane(axis, _title(key, name), real)
            _walks(axis, points)
        _steps(lower.add_subplot(), steps, name)
        lower.legend(loc="outside lower center", ncols=len(steps))
    return figure


def _walks(axis: "Axes", points: NDArray[np.float32]) -> None:
    """Lines through the positions of walks (n, k, 2), their ends as squares."""
    for i, walk in enumerate(points):
        colour = STUDENTS[i % len(STUDENTS)]
        axis.plot(walk[:, 0], walk[:, 1], color=colour, linewidth=1, marker="o", markersize=3.5)
        axis.plot(*walk[[0, -1]].T, color=colour, linestyle="", marker="s", markersize=7)


def _colour(key: str) -> str:
    return {"teacher": TEACHER, "student": own_colour(), "latent": colour_beside()}[key]


def _title(key: str, name: str) -> str:
    return short(name) if key == "student" else key


def _steps(axis: "Axes", steps: Steps, name: str) -> None:
    """The mean length of the steps at every place of the walks."""
    for key, lengths in steps.items():
        places = (np.arange(lengths.shape[1]) + 0.5) / lengths.shape[1]
        axis.plot(places, lengths.mean(0), color=_colour(key), label=_title(key, name),
                  marker="o", markersize=3.5)
    axis.set(xlim=(0, 1), xlabel="position on the walk", ylabel="length of the step")
    axis.set_ylim(bottom=0)
