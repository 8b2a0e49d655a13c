"""Images beside the nearest training images, and how near these are."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdm_core.figures.grid import Row, above_plots, draw_rows
from kdm_core.figures.style import TEACHER, colour_beside, own_colour, short, styled
from kdm_core.samples import SOURCE_NAMES, Source

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 40
REAL = "#999999"


class Neighbours(NamedTuple):
    """The closest pairs in one space.

    Attributes:
        space: in which they are near.
        pairs: of "student" and "teacher" (or "pairs"), images (n, C, H, W) in [-1, 1], and the
            training images nearest to them.
    """

    space: str
    pairs: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]


class Distances(NamedTuple):
    """Distances to the nearest training image in one space.

    Attributes:
        nearest: of "student", "teacher" (or "pairs"), "held_out" if there are any, and "train",
            (n,) each; training images to other ones.
        ratio: near copies are closer than this times the median of "train".
    """

    nearest: Mapping[str, NDArray[np.float64]]
    ratio: float

    def median(self, who: str) -> float:
        return float(np.median(self.nearest[who]))

    @property
    def threshold(self) -> float:
        return self.ratio * self.median("train")

    def copies(self, who: str) -> float:
        """The share of near copies."""
        return float((self.nearest[who] < self.threshold).mean())

    def numbers(self) -> dict[str, float]:
        shares = {f"{who}_copies": self.copies(who) for who in self.nearest}
        medians = {f"{who}_median": self.median(who) for who in self.nearest}
        least = {f"{who}_least": float(values.min()) for who, values in self.nearest.items()}
        return shares | medians | least | {"threshold": self.threshold}


def nearest_training_images(
    pictures: Sequence[Neighbours], distances: Mapping[str, Distances], name: str,
    source: Source = "teacher",
) -> "Figure":
    """The closest pairs in every space, a pair being one image above another; histograms below.

    Args:
        pictures: one a space.
        distances: by space.
        name: the student's.
        source: what the student stands beside.
    """
    names = {"student": short(name), source: SOURCE_NAMES[source]}
    colours = {"student": own_colour(), source: TEACHER}
    blocks = [[[Row(names[who], colours[who], made), Row("nearest", REAL, real)]
               for who, (made, real) in picture.pairs.items()] for picture in pictures]
    figure, above, below = above_plots(blocks, len(distances), titled=True)
    with styled():
        for axis, picture, rows in zip(above, pictures, blocks, strict=True):
            draw_rows(axis, rows)
            axis.set_title(f"nearest in {picture.space}")
        for axis, (space, found) in zip(below, distances.items(), strict=True):
            draw_distances(axis, found.nearest, found.threshold,
                           names | {"held_out": "held-out images", "train": "training images"},
                           colours | {"held_out": colour_beside(), "train": REAL})
            axis.set_xlabel(f"distance in {space}")
        figure.legend(*below[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def draw_distances(
    axis: "Axes", nearest: Mapping[str, NDArray[np.float64]], limit: float,
    names: Mapping[str, str], colours: Mapping[str, str],
) -> None:
    """Histograms: outlines, that of "train" filled; a line where near copies begin.

    Args:
        nearest: distances (n,), with a name and a colour for each.
        limit: the largest distance of a near copy.
    """
    largest = max(float(values.max()) for values in nearest.values())
    bins = np.linspace(0, largest or 1.0, BINS + 1).tolist()
    for who in reversed(list(nearest)):
        values = nearest[who]
        axis.hist(values, bins, weights=np.full(len(values), 1 / len(values)), color=colours[who],
                  histtype="stepfilled" if who == "train" else "step", linewidth=1.6,
                  alpha=0.45 if who == "train" else 1, label=names[who])
    axis.axvline(limit, color="#d55e00", linestyle="--", linewidth=1,
                 label="limit of near copies")
    axis.set_ylabel("share")
