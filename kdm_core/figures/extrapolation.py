"""Fréchet distances over the number of samples, and the line that leads to infinitely many."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdm_core.figures.style import TEACHER, WIDTH, panels, short, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Extrapolated(NamedTuple):
    """Numbers of samples (k,), the distance (k,) at each, and the limit at infinitely many."""

    n: NDArray[np.float64]
    fd: NDArray[np.float64]
    infinite: float


def extrapolation(
    extractors: Mapping[str, tuple[Extrapolated, Mapping[str, Extrapolated]]],
    colours: Mapping[str, str], source: str = "teacher",
) -> "Figure":
    """One panel an extractor: distance over 1/n, which is nearly linear (Chong and Forsyth, 2020).

    Args:
        extractors: by name, the teacher's distances and those of students by name.
        colours: by the student's name.
        source: what the teacher's line is called.
    """
    students = {name: colours[name] for _, found in extractors.values() for name in found}
    columns = 2 if len(extractors) > 1 else 1
    figure, axes = panels(len(extractors), columns, WIDTH, WIDTH / 2.2)
    with styled():
        for axis, (name, (teacher, found)) in zip(axes, extractors.items(), strict=True):
            _line(axis, teacher, TEACHER)
            for model, line in found.items():
                _line(axis, line, colours[model])
            axis.set_title(short(name, 24))
            _count_samples(axis, [teacher, *found.values()])
        handles = [axes[0].plot([], [], color=colour, marker="o", markersize=4,
                                label=short(name, 20))[0]
                   for name, colour in [(source, TEACHER), *students.items()]]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 4))
        figure.supxlabel("samples n, on a scale of 1/n", fontsize="medium")
        figure.supylabel("Fréchet distance", fontsize="medium")
    return figure


def _line(axis: "Axes", measured: Extrapolated, colour: str) -> None:
    """Measured distances as dots, the line through them, and where it ends as a diamond."""
    inverse = 1 / measured.n
    # The line of least squares among those that end where the extrapolation does.
    slope = (inverse @ (measured.fd - measured.infinite)) / (inverse @ inverse)
    ends = np.array([0.0, inverse.max()])
    axis.plot(ends, measured.infinite + slope * ends, color=colour, linewidth=1.2, alpha=0.7)
    axis.plot(inverse, measured.fd, "o", color=colour, markersize=4)
    axis.plot(0, measured.infinite, "D", color=colour, markersize=7, zorder=4, clip_on=False)


def _count_samples(axis: "Axes", lines: list[Extrapolated]) -> None:
    """Ticks named by n instead of 1/n, as many as do not run into one another."""
    counts = np.unique(np.concatenate([line.n for line in lines]))[::-1]
    limit = 1.05 / counts[-1]
    ticks, names = [0.0], ["∞"]
    for count in counts:
        if 1 / count - ticks[-1] >= 0.17 * limit:
            ticks.append(1 / count)
            names.append(f"{count:,.0f}")
    axis.set_xticks(ticks, names)
    axis.set_xlim(0, limit)
