"""Samples whose modes are another noise's, and how much that changes them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdm_core.figures.grid import PLOT, PLOT_LABELS, Row, above_plots, draw_rows
from kdm_core.figures.style import INK, WIDTH, colour_beside, own_colour, styled
from kdm_core.figures.vicinity import plane

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Samples = Mapping[str, NDArray[np.float32]]
"""(n, *shape) each: of "own" noise, of the "other", and by the band that is the other's."""
Measures = Mapping[str, Mapping[str, float | None]]
"""By band: change, low and to_other, as `kdm_core.studies.modes.Exchange` has them."""
EXCHANGED = INK
BARS = {"change": "change ÷ exchange of all", "low": "coarse share of the change",
        "to_other": "difference to the other ÷ before"}


def modes_of_images(samples: Samples, measures: Measures) -> "Figure":
    """A row of every band, below the samples of both noises; a column is one pair. Bars below.

    Args:
        samples: images (n, C, H, W) in [-1, 1].
        measures: of the bands.
    """
    rows = [Row(key, _colour(key), images) for key, images in samples.items()]
    by_kind = [[row for row in rows if row.name.endswith(kind)] for kind in ("decay", "rotation")]
    blocks = [rows[:2], *by_kind, rows[-1:]]
    figure, (picture,), (plot,) = above_plots([blocks], 1)
    with styled():
        draw_rows(picture, blocks)
        _bars(plot, measures)
        figure.legend(*plot.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def modes_of_points(
    samples: Samples, measures: Measures, real: NDArray[np.float32]
) -> "Figure":
    """A panel of every band: lines from a noise's sample to where the exchange takes it.

    Args:
        samples: points (n, 2).
        measures: of the bands.
        real: points (m, 2), drawn faintly behind the samples.
    """
    from matplotlib.figure import Figure

    bands = [key for key in samples if key not in ("own", "other", "all")]
    heights = [2 * WIDTH / 3 + 0.7, PLOT + PLOT_LABELS]
    with styled():
        figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
        above, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
        for axis, band in zip(above.subplots(2, 3).flat, bands, strict=True):
            plane(axis, band, real)
            _arrivals(axis, samples["own"], samples["other"], samples[band])
        above.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        plot = lower.add_subplot()
        _bars(plot, measures)
        lower.legend(*plot.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _colour(what: str) -> str:
    """Of a noise's samples, or of a measure."""
    if what in ("own", "change"):
        return own_colour()
    beside = {"other": 0, "to_other": 0, "low": 1}
    return colour_beside(beside[what]) if what in beside else EXCHANGED


def _arrivals(
    axis: "Axes", own: NDArray[np.float32], other: NDArray[np.float32],
    exchanged: NDArray[np.float32],
) -> None:
    ways = np.stack([own, exchanged])
    axis.plot(ways[..., 0], ways[..., 1], color=EXCHANGED, linewidth=0.8, zorder=2)
    for key, points in (("own", own), ("other", other)):
        axis.scatter(points[:, 0], points[:, 1], color=_colour(key), s=16, label=key,
                     linewidths=0, zorder=3)
    axis.scatter(exchanged[:, 0], exchanged[:, 1], color=EXCHANGED, marker="x", s=24,
                 label="exchanged", zorder=4)


def _bars(axis: "Axes", measures: Measures) -> None:
    """The measures of all bands, beside one another, as far as there are any."""
    from matplotlib.ticker import PercentFormatter

    shown = [what for what in BARS if any(one[what] is not None for one in measures.values())]
    width = 0.8 / len(shown)
    for i, what in enumerate(shown):
        places = np.arange(len(measures)) + (i - (len(shown) - 1) / 2) * width
        heights = [one[what] or 0.0 for one in measures.values()]
        axis.bar(places, heights, width, color=_colour(what), label=BARS[what], zorder=2)
    axis.set_xticks(range(len(measures)), [band.replace(" ", "\n") for band in measures])
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.grid(False, axis="x")
