"""Samples beside the training images that they are nearest to, around the limit of near copies."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdm_core.figures.grid import PLOT, PLOT_LABELS, Row, above_plots, draw_rows
from kdm_core.figures.memorisation import REAL, draw_distances
from kdm_core.figures.style import TEACHER, WIDTH, panels, styled
from kdm_core.figures.tiles import Images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pictured = Mapping[str, tuple[Images, Images]]
"""By what they have in common: images (n, C, H, W) in [-1, 1], and those nearest to them."""


def near_copies(
    pictured: Pictured, made: NDArray[np.float64], between: NDArray[np.float64], limit: float,
    space: str,
) -> "Figure":
    """Rows of samples above the training images nearest to them; histograms of distances below.

    Args:
        pictured: what is shown; nothing of points.
        made: finite distances (n,) of samples to the nearest training sample.
        between: those (m,) of training samples to other ones.
        limit: the largest distance of a near copy.
        space: where distances are taken.
    """
    blocks = [[Row(name, TEACHER, samples), Row("training", REAL, real)]
              for name, (samples, real) in pictured.items()]
    if blocks:
        figure, (above,), (below,) = above_plots([blocks], 1)
    else:
        figure, (below,) = panels(1, 1, WIDTH, PLOT + PLOT_LABELS)
    with styled():
        if blocks:
            draw_rows(above, blocks)
        draw_distances(below, {"made": made, "train": between}, limit,
                       {"made": "samples", "train": "training data"},
                       {"made": TEACHER, "train": REAL})
        below.set_xlabel(f"distance in {space} to the nearest training sample")
        figure.legend(*below.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
