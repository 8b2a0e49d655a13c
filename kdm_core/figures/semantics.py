"""Noise coloured by the cluster of what is made of it (Fig. 2)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdm_core.figures.scatter import DARK, LIMIT, NOISE_LIMIT, Points, board, cloud
from kdm_core.figures.style import WIDTH, panels, styled
from kdm_core.figures.tiles import Images, mosaic
from kdm_core.samples import SOURCE_NAMES, Source

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

View = tuple[Points, NDArray[np.integer[Any]]]
"""Points (n, 2), and the cluster of each (n,), which is the place of its colour in `DARK`."""


def titles(source: Source) -> tuple[str, str, str]:
    return SOURCE_NAMES[source], "student", "permuted"


def point_clusters(
    noise: Points, sets: Sequence[View], source: Source = "teacher"
) -> "Figure":
    """Noise above samples, for teacher, student, and the teacher's samples permuted.

    Args:
        noise: (n, 2).
        sets: samples, in the order of their noise, and clusters of the three.
        source: what the student stands beside.
    """
    figure, axes = panels(6, 3, WIDTH, WIDTH / 3 + 0.2)
    with styled():
        for column, (title, (samples, clusters)) in enumerate(
                zip(titles(source), sets, strict=True)):
            colours = np.array(DARK)[clusters]
            cloud(axes[column], title, noise, colours, NOISE_LIMIT)
            board(axes[3 + column])
            cloud(axes[3 + column], "", samples, colours, LIMIT)
        axes[0].set_ylabel("noise")
        axes[3].set_ylabel("samples")
    return figure


def image_clusters(
    views: Sequence[View], examples: Sequence[Images], source: Source = "teacher"
) -> "Figure":
    """Noise along two directions, for teacher, student and permuted clusters; below, images.

    Args:
        views: noises in these coordinates and their clusters, for the three.
        examples: images (m, C, H, W) of each cluster, in [-1, 1], C 1 or 3.
        source: what the student stands beside.
    """
    from matplotlib.figure import Figure

    height, width = examples[0].shape[2:]
    above = WIDTH / len(views) + 0.3
    below = WIDTH / len(examples) * height / width * max(map(len, examples))
    with styled():
        figure = Figure(figsize=(WIDTH, above + below), layout="constrained")
        rows = figure.add_gridspec(2, 1, height_ratios=(above, below))
        upper, lower = rows[0].subgridspec(1, len(views)), rows[1].subgridspec(1, len(examples))
        for i, (title, view) in enumerate(zip(titles(source), views, strict=True)):
            _map(figure.add_subplot(upper[i]), title, view)
        for i, images in enumerate(examples):
            _column(figure.add_subplot(lower[i]), images, DARK[i])
    return figure


def _map(axis: "Axes", title: str, view: View) -> None:
    """Noises of unit variance in two orthogonal directions, and the means of their clusters."""
    points, clusters = view
    present = np.unique(clusters)
    means = np.stack([points[clusters == c].mean(axis=0) for c in present])
    cloud(axis, title, points, np.array(DARK)[clusters], NOISE_LIMIT)
    axis.scatter(means[:, 0], means[:, 1], c=np.array(DARK)[present].tolist(), s=70,
                 edgecolors="white", linewidths=1.2)


def _column(axis: "Axes", images: Images, colour: str) -> None:
    """Images above one another in a frame of the cluster's colour."""
    if len(images):
        gap = max(1, images.shape[3] // 16)
        axis.imshow(mosaic(images, 1, gap)[:-gap, :-gap], interpolation="nearest")
    axis.set(xticks=(), yticks=())
    axis.grid(False)
    axis.spines[:].set_visible(True)
    axis.spines[:].set_color(colour)
    axis.spines[:].set_linewidth(3)
