"""Eigenvalues of the students' operators in the complex plane."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdm_core.figures.style import WIDTH, panels, short, student_colours, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def spectrum(eigenvalues: Mapping[str, NDArray[np.complexfloating]]) -> "Figure":
    """One panel a student, all on the same scale, with the unit circle.

    Modes inside the circle shrink, modes on it keep their size and turn, modes outside grow.

    Args:
        eigenvalues: by the student's name, complex (d,).
    """
    from matplotlib.patches import Circle

    columns = 2 if len(eigenvalues) in (1, 2, 4) else 3
    # A single panel need not be as wide as the page.
    figure, axes = panels(len(eigenvalues), columns, WIDTH if len(eigenvalues) > 1 else 0.6 * WIDTH,
                          WIDTH / columns + 0.1)
    largest = {name: float(np.abs(values).max()) for name, values in eigenvalues.items()}
    limit = 1.1 * max(1.0, *largest.values())
    colours = student_colours(eigenvalues)
    with styled():
        for axis, (name, values) in zip(axes, eigenvalues.items(), strict=True):
            axis.add_patch(Circle((0, 0), 1, fill=False, edgecolor="#777777", linewidth=1,
                                   zorder=2))
            axis.scatter(values.real, values.imag, s=16, color=colours[name], alpha=0.65,
                         linewidths=0, zorder=3)
            axis.set_title(f"{short(name, 20)}: largest |λ| {largest[name]:.3f}")
            axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xlabel="Re λ",
                     ylabel="Im λ")
    return figure
