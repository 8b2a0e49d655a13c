"""Neighbours of a noise under teacher and student, and how far they are."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdm_core.figures.grid import PLOT, PLOT_LABELS, Row, above_plots, draw_rows
from kdm_core.figures.scatter import NOISE_LIMIT
from kdm_core.figures.style import TEACHER, WIDTH, colour_beside, own_colour, short, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure


class Growth(NamedTuple):
    """Mean squared distances.

    Attributes:
        sigmas: (k,).
        teacher, student: (k,) from each model's sample at sigma 0.
        between: (k,) from the teacher's to the student's sample of the same noise.
        far, student_far: from each model's sample at sigma 0 to those of unrelated noise.
    """

    sigmas: NDArray[np.float64]
    teacher: NDArray[np.float64]
    student: NDArray[np.float64]
    between: NDArray[np.float64]
    far: float
    student_far: float

    def numbers(self) -> dict[str, float | list[float]]:
        return {"teacher": self.teacher.tolist(), "student": self.student.tolist(),
                "between": self.between.tolist(), "teacher_unrelated": self.far,
                "student_unrelated": self.student_far}


def vicinity_of_images(
    teacher: NDArray[np.float32], student: NDArray[np.float32], growths: Mapping[str, Growth],
    sigmas: list[float], name: str,
) -> "Figure":
    """For each noise a row of the teacher and one of the student; curves below.

    Args:
        teacher, student: (n, k, C, H, W) in [-1, 1], noises × sigmas.
        growths: by the space in which the distances are.
        sigmas: (k,) of the images.
        name: the student's.
    """
    blocks = [[Row("teacher", TEACHER, a), Row(short(name), own_colour(), b)]
              for a, b in zip(teacher, student, strict=True)]
    figure, (picture,), below = above_plots([blocks], len(growths), titled=True)
    with styled():
        draw_rows(picture, blocks, [f"σ {sigma:g}" for sigma in sigmas])
        for axis, (space, growth) in zip(below, growths.items(), strict=True):
            _curves(axis, space, growth, name)
        figure.legend(*below[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def vicinity_of_points(
    clouds: Mapping[str, NDArray[np.float32]], growths: Mapping[str, Growth],
    sigmas: list[float], real: NDArray[np.float32], name: str,
) -> "Figure":
    """Panels of the noise's neighbours and of where both models take them; curves below.

    Args:
        clouds: of "noise", "teacher" and "student", points (n, k, s, 2), which are
            noises × sigmas × directions.
        growths: by the space in which the distances are.
        sigmas: (k,), the points' colours.
        real: points (m, 2), drawn faintly behind the samples.
        name: the student's.
    """
    from matplotlib.figure import Figure

    with styled():
        heights = [WIDTH / len(clouds) + 0.8, PLOT + PLOT_LABELS]
        figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
        above, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
        panels = above.subplots(1, len(clouds))
        for axis, (key, points) in zip(panels, clouds.items(), strict=True):
            plane(axis, short(name, 20) if key == "student" else key,
                  None if key == "noise" else real)
            drawn = _neighbours(axis, points, sigmas)
        above.colorbar(drawn, ax=panels, label="σ", location="bottom", shrink=0.6, aspect=40)
        below = lower.subplots(1, len(growths), squeeze=False)[0]
        for axis, (space, growth) in zip(below, growths.items(), strict=True):
            _curves(axis, space, growth, name)
        lower.legend(*below[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def plane(axis: "Axes", title: str, real: NDArray[np.float32] | None) -> None:
    """An empty panel: of noise, or of samples over the real points (m, 2), drawn faintly."""
    limit = NOISE_LIMIT if real is None else 1.15 * float(np.abs(real).max())
    if real is not None:
        axis.scatter(real[:, 0], real[:, 1], s=1, color="#80808060", linewidths=0, zorder=1)
    axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    axis.set_title(title)
    axis.grid(False)


def _neighbours(
    axis: "Axes", points: NDArray[np.float32], sigmas: list[float]
) -> "PathCollection":
    """Points (n, k, s, 2) in the colours of their sigmas, those at sigma 0 as crosses."""
    # Large sigmas first, so that small ones lie on top.
    x, y = points[:, ::-1].swapaxes(0, 1).reshape(-1, 2).T
    colours = np.repeat(sigmas[::-1], len(x) // len(sigmas))
    drawn = axis.scatter(x, y, c=colours, s=7, cmap="viridis_r", vmin=0, vmax=sigmas[-1],
                         linewidths=0, zorder=2)
    axis.scatter(points[:, 0, 0, 0], points[:, 0, 0, 1], marker="x", color="#d55e00",
                 s=40, linewidths=1.8, zorder=3)
    return drawn


def _curves(axis: "Axes", space: str, growth: Growth, name: str) -> None:
    """Distances against sigma, in units of the teacher's distance to unrelated samples."""
    axis.plot(growth.sigmas, growth.teacher / growth.far, color=TEACHER,
              label="teacher to its σ = 0")
    axis.plot(growth.sigmas, growth.student / growth.far, color=own_colour(),
              label=f"{short(name)} to its σ = 0")
    axis.plot(growth.sigmas, growth.between / growth.far, color=colour_beside(), linestyle="--",
              label="between the two")
    axis.axhline(1, color="#777777", linewidth=1.2, linestyle=":", label="unrelated noise")
    axis.set_ylim(0, 1.1)
    axis.set_title(f"distance in {space}")
    axis.set_xlabel("σ")
    axis.set_ylabel("÷ unrelated")
    axis.margins(x=0.02)
