"""Pictures of teacher and students from the same noise."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdm_core.figures.style import INK, TEACHER, WIDTH, own_colour, short, student_colours, styled
from kdm_core.figures.tiles import EMPTY, Images, mosaic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LETTER, SMALL_LETTER = 0.11, 0.077
"""Inches that are kept for a bold letter of the rows' names, of which few take as much, and those
that one of the columns' names takes."""
PLOT, PLOT_LABELS, TITLE = 1.9, 1.1, 0.3
"""Inches: a plot's height, that of its labels and legend, and that of a picture's title."""


class Row(NamedTuple):
    """Images (n, C, H, W) beside one another, with a name at their left."""

    name: str
    colour: str
    images: Images


Blocks = Sequence[Sequence[Row]]
"""Rows above one another, with a wider gap after each block of them."""


def teacher_student_grid(
    teacher: Images, students: Mapping[str, Images], columns: int = 10, source: str = "teacher",
    classes: Sequence[str] = (),
) -> "Figure":
    """Blocks of rows, the teacher's on top and each student's below; a column is one noise.

    Args:
        teacher: (n, C, H, W) in [-1, 1].
        students: by name, images (n, C, H, W) of the same noise in the same order.
        columns: images a row.
        source: what the teacher's rows are called.
        classes: a name for each column, the same in all blocks; none where there are none.
    """
    from matplotlib.figure import Figure

    colours = student_colours(students)
    rows = [Row(short(source), TEACHER, teacher),
            *(Row(short(name), colours[name], images) for name, images in students.items())]
    blocks = [[row._replace(images=row.images[start : start + columns]) for row in rows]
              for start in range(0, len(teacher), columns)]
    # Placed by hand: the picture takes the width that the longest name leaves, and the figure is
    # as high as that makes the picture.
    left = 0.15 + LETTER * max(len(row.name) for row in rows)
    height = picture_height(blocks, WIDTH - left)
    names = staggered(classes, (WIDTH - left) / columns)
    lines = max((1 + name.count("\n") for name in names), default=0)
    whole = height + 0.1 + 0.08 * bool(lines) + 0.17 * lines
    with styled():
        figure = Figure(figsize=(WIDTH, whole))
        axis = figure.add_axes((left / WIDTH, 0.05 / whole, 1 - left / WIDTH, height / whole))
        draw_rows(axis, blocks, names)
    return figure


def staggered(names: Sequence[str], width: float) -> list[str]:
    """Names as they fit above columns of `width` inches: where one is wider, they take two lines,
    and each second one stands a line higher."""
    names = [short(name, 10) for name in names]
    if max(map(len, names), default=0) * SMALL_LETTER < width:
        return names
    return [name.replace(" ", "\n", 1) if " " in name else name + "\n" * (place % 2)
            for place, name in enumerate(names)]


def image_grid(teacher: Images, student: Images, source: str = "teacher") -> "Figure":
    """A compact grid of one student beside its teacher; both (n, C, H, W) in [-1, 1]."""
    return teacher_student_grid(teacher, {"student": student}, columns=16, source=source)


def side_by_side(
    teacher: Sequence[Images], student: Sequence[Images], name: str, classes: Sequence[str],
    source: str = "teacher",
) -> "Figure":
    """The teacher's images at the left, the student's of the same noise at the same places right.

    Args:
        teacher: rows of images, (n, C, H, W) in [-1, 1] each.
        student: the same of the student.
        name: the student's.
        classes: a name for each row; empty for rows without.
        source: what the teacher's side is called.
    """
    from matplotlib.figure import Figure

    names = [short(label, 12) for label in classes] or [""] * len(teacher)
    sides = [[[Row(label, INK, images) for label, images in zip(shown, rows, strict=True)]]
             for shown, rows in ((names, teacher), ([""] * len(student), student))]
    left = LETTER * max(map(len, names))
    with styled():
        height = picture_height(sides[0], (WIDTH - left) / 2 - 0.1)
        figure = Figure(figsize=(WIDTH, height + 0.35), layout="constrained")
        for axis, title, colour, blocks in zip(
            figure.subplots(1, 2), (source, short(name, 24)), (TEACHER, own_colour()), sides,
            strict=True,
        ):
            draw_rows(axis, blocks)
            axis.set_title(title, color=colour, fontweight="bold")
    return figure


def above_plots(
    pictures: Sequence[Blocks], plots: int, titled: bool = False
) -> tuple["Figure", list["Axes"], list["Axes"]]:
    """A figure of pictures above one another, with a row of plots below them.

    Args:
        pictures: what shall be drawn, for which room is left.
        plots: how many, at least one.
        titled: whether something shall stand above every picture.

    Returns:
        The figure, the axes of the pictures (nothing is drawn yet), and those of the plots.
    """
    from matplotlib.figure import Figure

    names = [row.name for blocks in pictures for block in blocks for row in block]
    width = WIDTH - 0.1 - 0.8 * LETTER * max(map(len, names))
    heights = [*(picture_height(blocks, width) for blocks in pictures), PLOT]
    around = PLOT_LABELS + TITLE * titled * len(pictures)
    with styled():
        figure = Figure(figsize=(WIDTH, sum(heights) + around), layout="constrained")
        grid = figure.add_gridspec(len(heights), plots, height_ratios=heights)
        above = [figure.add_subplot(grid[i, :]) for i in range(len(pictures))]
        below = [figure.add_subplot(grid[-1, i]) for i in range(plots)]
    return figure, above, below


def draw_rows(axis: "Axes", blocks: Blocks, columns: Sequence[str] = ()) -> None:
    """Blocks of rows, with the rows' names at their left and any names of columns above them."""
    rows = [row for block in blocks for row in block]
    picture, centres = _arrange(blocks)
    axis.imshow(picture, interpolation="nearest")
    # At the left of its room: the layout then knows where the names begin, however wide it gets.
    axis.set_anchor("W")
    pitch = picture.shape[1] / max(len(row.images) for row in rows)
    axis.set_xticks([(i + 0.5) * pitch - 0.5 for i in range(len(columns))], columns)
    axis.set_yticks(centres, [row.name for row in rows])
    for label, row in zip(axis.get_yticklabels(), rows, strict=True):
        label.set_color(row.colour)
        label.set_fontweight("bold")
    axis.tick_params(length=0, top=True, labeltop=True, labelbottom=False)
    axis.grid(False)
    axis.spines[:].set_visible(False)


def picture_height(blocks: Blocks, width: float) -> float:
    """How high blocks are that are so wide."""
    picture, _ = _arrange(blocks)
    height, pixels = picture.shape[:2]
    return width * float(height / pixels)


def _arrange(blocks: Blocks) -> tuple[NDArray[np.uint8], list[float]]:
    """All blocks as one picture, with room between the images and more between blocks.

    Returns:
        RGBA (height, width, 4), and the vertical centre of each row in it.
    """
    shapes = [row.images.shape for block in blocks for row in block]
    columns, (height, width) = max(shape[0] for shape in shapes), shapes[0][2:]
    gap = max(1, round(0.06 * max(height, width)))
    parts: list[NDArray[np.uint8]] = []
    centres: list[float] = []
    top = 0
    for block in blocks:
        for row in block:
            parts.append(mosaic(row.images, columns, gap))
            centres.append(top + (height - 1) / 2)
            top += height + gap
        parts.append(np.full((2 * gap, columns * (width + gap), 4), EMPTY, np.uint8))
        top += 2 * gap
    return np.concatenate(parts[:-1]), centres
