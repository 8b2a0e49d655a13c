"""Pictures of teacher and students from the same noise, above one another."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdm_core.figures.style import TEACHER, WIDTH, short, student_colours, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Images = NDArray[np.floating[Any]]
"""(n, C, H, W) in [-1, 1], C being 1 or 3."""


def teacher_student_grid(
    teacher: Images, students: Mapping[str, Images], columns: int = 10
) -> "Figure":
    """Blocks of rows, the teacher's on top and each student's below; a column is one noise.

    Args:
        teacher: (n, C, H, W) in [-1, 1].
        students: by name, images (n, C, H, W) of the same noise in the same order.
        columns: images a row.
    """
    from matplotlib.figure import Figure

    rows = {"teacher": teacher, **students}
    names = [short(name) for name in rows]
    colours = [TEACHER, *student_colours(students).values()]
    picture, centres = _arrange(list(rows.values()), min(columns, len(teacher)))
    # Placed by hand: the picture takes the width that the longest name leaves, at 0.11 inches a
    # letter, and the figure is as high as that makes the picture.
    left = 0.15 + 0.11 * max(map(len, names))
    height = (WIDTH - left) * picture.shape[0] / picture.shape[1]
    with styled():
        figure = Figure(figsize=(WIDTH, height + 0.1))
        axis = figure.add_axes((left / WIDTH, 0.05 / (height + 0.1), 1 - left / WIDTH,
                                height / (height + 0.1)))
        axis.imshow(picture, interpolation="nearest", aspect="auto")
        axis.set_xticks([])
        axis.set_yticks(centres, names * (len(centres) // len(names)))
        for i, label in enumerate(axis.get_yticklabels()):
            label.set_color(colours[i % len(colours)])
            label.set_fontweight("bold")
        axis.tick_params(length=0)
        axis.grid(False)
        axis.spines[:].set_visible(False)
    return figure


def image_grid(teacher: Images, student: Images) -> "Figure":
    """A compact grid of one student beside its teacher; both (n, C, H, W) in [-1, 1]."""
    return teacher_student_grid(teacher, {"student": student}, columns=16)


def _arrange(rows: list[Images], columns: int) -> tuple[NDArray[np.uint8], list[float]]:
    """All blocks of rows as one picture, with white between the images and more between blocks.

    Returns:
        RGB (height, width, 3), and the vertical centre of each row in it.
    """
    n, _, height, width = rows[0].shape
    gap = max(1, round(0.06 * max(height, width)))
    pitch_y, pitch_x, between = height + gap, width + gap, 2 * gap
    blocks = -(-n // columns)
    shape = (blocks * (len(rows) * pitch_y + between) - between, columns * pitch_x, 3)
    picture = np.full(shape, 255, np.uint8)
    tops = [block * (len(rows) * pitch_y + between) + i * pitch_y
            for block in range(blocks) for i in range(len(rows))]
    for i, row in enumerate(rows):
        for j in range(n):
            y, x = tops[j // columns * len(rows) + i], j % columns * pitch_x
            values = (row[j].transpose(1, 2, 0) * 127.5 + 128).clip(0, 255)
            picture[y : y + height, x : x + width] = values.astype(np.uint8)
    return picture, [top + (height - 1) / 2 for top in tops]
