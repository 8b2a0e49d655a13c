"""Figures as files."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from kdm_core.figures.grid import image_grid
from kdm_core.figures.scatter import noise_map
from kdm_core.samples import SOURCE_NAMES, SampleSpec, Source
from kdm_core.serialization import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def render(figure: "Figure") -> bytes:
    """A figure as PNG whose bytes depend on nothing but the figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def save_figure(path: Path, figure: "Figure") -> None:
    """Write a figure as PNG."""
    write_atomic(path, render(figure))


def comparison(
    spec: SampleSpec, teacher: Tensor, student: Tensor, source: Source = "teacher"
) -> "Figure":
    """Samples (n, *spec.shape) of one student beside its teacher's from the same noise.

    Args:
        source: "pairs" where nobody knows the teacher.
    """
    theirs, made, name = teacher.cpu().numpy(), student.cpu().numpy(), SOURCE_NAMES[source]
    return (image_grid(theirs, made, name) if spec.kind == "image"
            else noise_map(theirs, {"student": made}, source=name))
