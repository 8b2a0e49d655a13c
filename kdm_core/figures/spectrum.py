"""Eigenvalues of the students' operators in the complex plane."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdm_core.figures.style import WIDTH, own_colour, panels, short, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BIN = 0.05
"""Width of the histogram's bars, of which one ends at 1, so that none holds modes that shrink and
modes that grow."""
Eigenvalues = NDArray[np.complexfloating]
"""(d,)."""


def spectrum(eigenvalues: Mapping[str, Eigenvalues], colours: Mapping[str, str]) -> "Figure":
    """One panel a student, all on the same scale, with the unit circle.

    Modes inside the circle shrink, modes on it keep their size and turn, modes outside grow.

    Args:
        eigenvalues: by the student's name, complex (d,).
        colours: by the student's name.
    """
    columns = 2 if len(eigenvalues) in (1, 2, 4) else 3
    # A single panel need not be as wide as the page.
    figure, axes = panels(len(eigenvalues), columns, WIDTH if len(eigenvalues) > 1 else 0.6 * WIDTH,
                          WIDTH / columns + 0.1)
    limit = 1.1 * max(1.0, *(float(np.abs(values).max()) for values in eigenvalues.values()))
    with styled():
        for axis, (name, values) in zip(axes, eigenvalues.items(), strict=True):
            _plane(axis, values, colours[name], limit)
            axis.set_title(f"{short(name, 20)}: largest |λ| {np.abs(values).max():.3f}")
    return figure


def spectrum_and_moduli(eigenvalues: Eigenvalues) -> "Figure":
    """One student's eigenvalues (d,) in the plane, and how many have which modulus."""
    from matplotlib.ticker import MaxNLocator

    moduli = np.abs(eigenvalues)
    limit = 1.1 * max(1.0, float(moduli.max()))
    bins = int(np.ceil(limit / BIN))
    counts, edges = np.histogram(moduli, bins, (0, bins * BIN))
    figure, (plane, histogram) = panels(2, 2, WIDTH, WIDTH / 2)
    with styled():
        _plane(plane, eigenvalues, own_colour(), limit)
        plane.set_title("eigenvalues λ")
        histogram.bar(edges[:-1], counts, BIN, align="edge", color=own_colour(), linewidth=0,
                      zorder=2)
        histogram.axvline(1, color="#777777", linewidth=1, zorder=3)
        histogram.set(title="their moduli", xlabel="|λ|", ylabel="eigenvalues", xlim=(0, limit))
        histogram.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _plane(axis: "Axes", values: Eigenvalues, colour: str, limit: float) -> None:
    """The square [-limit, limit]² of the complex plane with the unit circle."""
    from matplotlib.patches import Circle

    axis.add_patch(Circle((0, 0), 1, fill=False, edgecolor="#777777", linewidth=1, zorder=2))
    axis.scatter(values.real, values.imag, s=16, color=colour, alpha=0.65, linewidths=0, zorder=3)
    axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xlabel="Re λ",
             ylabel="Im λ")
