"""Training curves: the teacher's loss, and every term of the students' objective."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdm_core.figures.style import TEACHER, WIDTH, panels, short, student_colours, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Curve(NamedTuple):
    """Steps (n,) and values (n,)."""

    steps: NDArray[np.float64]
    values: NDArray[np.float64]


Curves = Mapping[str, Curve]
"""The curves of one training, by the names that its records have."""

COURSE = {
    "validation_mse_ratio": "held-out MSE / permuted",
    "loss": "students: total loss",
    "validation_distance": "held-out energy distance",
    "validation_recall": "held-out recall, in pixels",
}
"""How a training went: what is minimised, and how good students become on pairs that they do not
learn from."""
TERMS = {
    "reconstruction": "reconstruction (eq. 5)",
    "latent": "latent dynamics (eq. 6)",
    "prediction": "prediction (eq. 7)",
    "endpoint": "from states to the sample",
    "trajectory": "from state to state",
    "adversarial": "adversarial (eq. 8)",
    "discriminator": "discriminator",
    "drift_force": "drifting: force",
    "operator": "learned inverse (KDM-F)",
}
"""The parts of what is minimised."""
LOGARITHMIC = 5
"""Values are shown on a logarithmic scale from this ratio of the highest to the lowest on."""


def shown_in(
    titles: Mapping[str, str], students: Mapping[str, Curves]
) -> dict[str, dict[str, Curve]]:
    """By the titles' keys, the students' curves that are not all zero, where there are any."""
    found = {term: {name: curves[term] for name, curves in students.items()
                    if term in curves and curves[term].values.any()} for term in titles}
    return {term: curves for term, curves in found.items() if curves}


def training_curves(
    teacher: Curves, students: Mapping[str, Curves], titles: Mapping[str, str]
) -> "Figure":
    """One panel for the teacher's loss and one for every curve that a student has.

    Args:
        teacher: curves with "loss"; empty where that is not to be shown.
        students: by name, curves of which those in `titles` are drawn, in that order.
        titles: of the panels; there must be a curve for one, or the teacher's.
    """
    colours = student_colours(students)
    shown = shown_in(titles, students)
    first = 1 if teacher else 0
    figure, axes = panels(first + len(shown), 2, WIDTH, 1.9)
    with styled():
        if teacher:
            _draw(axes[0], teacher["loss"], TEACHER)
            _dress(axes[0], "teacher: loss", [teacher["loss"]])
        for axis, (term, curves) in zip(axes[first:], shown.items(), strict=True):
            for name, curve in curves.items():
                _draw(axis, curve, colours[name])
            _dress(axis, titles[term], list(curves.values()))
        # The legend names all students, also those that a panel has no curve of.
        handles = [axes[0].plot([], [], color=colours[name], label=short(name, 20))[0]
                   for name in students]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(len(students), 3))
        figure.supxlabel("step", fontsize="medium")
    return figure


def _draw(axis: "Axes", curve: Curve, colour: str) -> None:
    """A line, or a dot where there is one point only."""
    axis.plot(*curve, color=colour, marker="o" if len(curve.steps) == 1 else "", markersize=4)


def _dress(axis: "Axes", title: str, curves: list[Curve]) -> None:
    """Title and scale: logarithmic, where there are several marks on it and no values below 0."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    axis.set_title(title)
    axis.margins(x=0.02)
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    values = np.concatenate([curve.values for curve in curves])
    if values.min() <= 0 or values.max() < LOGARITHMIC * values.min():
        axis.yaxis.set_major_locator(MaxNLocator(4))
        return
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
