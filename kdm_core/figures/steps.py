"""Quality and fidelity of teacher and student over network evaluations."""

from typing import TYPE_CHECKING, NamedTuple

from kdm_core.figures.style import TEACHER, WIDTH, own_colour, panels, short, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Curve(NamedTuple):
    """One model at several numbers of evaluations, all (k,).

    Attributes:
        nfe: growing.
        distance: to held-out data.
        mse: to the stored samples of the same noise.
    """

    nfe: list[int]
    distance: list[float]
    mse: list[float]


def quality_and_fidelity(
    teacher: Curve, student: Curve, stored: float, quality: str, name: str
) -> "Figure":
    """Distances to held-out data at the left, errors to the stored samples at the right.

    Args:
        teacher, student: their curves.
        stored: the distance of the stored samples.
        quality: what the distance is called.
        name: the student's.
    """
    figure, (left, right) = panels(2, 2, WIDTH, 3.2)
    with styled():
        for curve, colour, who, marker in ((teacher, TEACHER, "teacher, fewer steps", "s"),
                                           (student, own_colour(), short(name), "o")):
            for axis, values in ((left, curve.distance), (right, curve.mse)):
                axis.plot(curve.nfe, values, color=colour, marker=marker, markersize=5, label=who)
        left.axhline(stored, color="#777777", linewidth=1.2, linestyle=":",
                     label="teacher, stored samples")
        ticks = sorted({*teacher.nfe, *student.nfe})
        _dress(left, quality, ticks, [*teacher.distance, *student.distance, stored])
        _dress(right, "MSE to the stored samples", ticks, [*teacher.mse, *student.mse])
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _dress(axis: "Axes", title: str, ticks: list[int], values: list[float]) -> None:
    """Title and scales; a logarithmic one shows no zeros or negative values."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

    axis.set_title(title)
    axis.set_xlabel("network evaluations")
    axis.set_xscale("log")
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
    if min(values) <= 0:
        return
    axis.set_yscale("log")
    subs = (1, 2, 5) if max(values) < 100 * min(values) else (1,)
    axis.yaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
