"""The pictures of a report: drawn, kept as files, and small enough for the page."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from kdm_core.datasets import DatasetInfo
from kdm_core.errors import DataError
from kdm_core.figures.curves import COURSE, TERMS, Curve, shown_in, training_curves
from kdm_core.figures.extrapolation import Extrapolated, extrapolation
from kdm_core.figures.grid import teacher_student_grid
from kdm_core.figures.scatter import noise_map
from kdm_core.figures.spectrum import spectrum
from kdm_core.samples import SOURCE_NAMES, Kind, Source
from pipeline.reporting.document import Extrapolations
from pipeline.reporting.reading import Samples
from pipeline.reporting.records import Extrapolation

COLUMNS, LINES = 10, 6
"""Noises beside one another in the picture of samples, and lines of images: of few models each has
two. More would not fit on a screen together with the verdict."""
PAGE_BYTES = 2_600_000
"""Of all pictures on a page together, before base64 makes a third more of them."""
QUALITIES = (90, 75, 50)


class Picture(NamedTuple):
    """A figure for the page; `alt` says what is to be seen, `caption` what to look at and, where it
    is unfolded, `more`."""

    name: str
    title: str
    alt: str
    caption: str
    figure: Figure
    more: str = ""


class Embedded(NamedTuple):
    """A picture as it stands in the page: its content as a URI, its size in CSS pixels."""

    uri: str
    width: int
    height: int


SHOWN = ("samples", "scatter")
"""The pictures of samples themselves."""


def samples(info: DatasetInfo, kind: Kind, drawn: Mapping[str, Samples]) -> Picture:
    """What fits the data: pictures of images, maps of points.

    Args:
        kind: of what is shown.
    """
    first = next(iter(drawn.values()))
    students, source = " and ".join(drawn), SOURCE_NAMES[first.source]
    if kind == "image":
        columns, classes = choose(first.labels, info.class_names if info.samples.num_classes
                                  else [], 2 if 2 * (1 + len(drawn)) <= LINES else 1)
        chosen = columns.T.ravel()
        return Picture(
            "samples", "The same noise",
            f"Rows of images of the {source} and, below, of {students}"
            f"{', a column for each class' if classes else ''}.",
            "A column is one noise, which none was trained on: each student’s image should be the "
            "one at the top.",
            teacher_student_grid(first.given[chosen],
                                 {name: one.student[chosen] for name, one in drawn.items()},
                                 len(columns), source, classes),
            f"The images are the first ones{' of their classes' if classes else ''}, not chosen.")
    return Picture(
        "scatter", "Where noise goes", f"Points of the noise, the {source} and {students}, "
        "coloured by cell.",
        f"Every noise has the colour of the cell in which the {source} puts it, in all panels. A "
        "student that makes the same map has the same colours in the same cells.",
        noise_map(first.given, {name: one.student for name, one in drawn.items()}, first.noise,
                  source),
        f"Gray are noises that the {source} puts off the dark cells. The noise panel shows which "
        "region of noise becomes which cell.")


def choose(
    labels: NDArray[np.integer], names: Sequence[str], most: int
) -> tuple[NDArray[np.intp], list[str]]:
    """Which noises are shown: the first ones of each class, or of all where there are none.

    Args:
        labels: (n,), the places of their classes in `names`.
        names: of the classes; empty where there are none.
        most: rows.

    Returns:
        (columns, rows) places in `labels`, and the class of each column.
    """
    # Pairs without classes are labelled -1, whatever classes the data have.
    if len(np.unique(labels)) < 2:
        names = []
    found = np.unique(labels) if names else np.zeros(1, int)
    # Of more classes than columns some, evenly over their order.
    shown = found[np.linspace(0, len(found) - 1, min(len(found), COLUMNS)).astype(int)]
    places = [np.flatnonzero(labels == label) if names else np.arange(len(labels))
              for label in shown]
    least = min(map(len, places))
    wide = min(COLUMNS // len(shown), least)
    rows = min(most, least // wide)
    columns = np.concatenate([own[:wide * rows].reshape(rows, wide).T for own in places])
    return columns, [names[label] for label in shown for _ in range(wide)] if names else []


def curves(students: Mapping[str, Mapping[str, Curve]]) -> Picture:
    """How the students' training went."""
    return Picture(
        "curves", "Training", f"Curves of the training of {' and '.join(students)} over steps.",
        "Held-out MSE is measured on pairs that were not trained on, as a share of the MSE when "
        "noises are mixed up: 1 is no better than any other sample, 0 is the same sample.",
        training_curves({}, students, COURSE))


def terms(
    teacher: Mapping[str, Curve], students: Mapping[str, Mapping[str, Curve]]
) -> Picture | None:
    """The parts of the students' losses, and the teacher's; None where there are none."""
    if not teacher and not shown_in(TERMS, students):
        return None
    trained = [*(["the teacher"] if teacher else []), *students]
    return Picture(
        "terms", "Losses", f"Curves of the losses of {' and '.join(trained)} over steps.",
        "What the students’ losses are made of; of a term that a student lacks it has no curve.",
        training_curves(teacher, students, TERMS))


def eigenvalues(drawn: Mapping[str, Samples], colours: Mapping[str, str]) -> Picture:
    """The spectra of the students' operators."""
    return Picture(
        "spectrum", "Eigenvalues of the students’ operators",
        f"Eigenvalues of {' and '.join(drawn)} in the complex plane with the unit circle.",
        "Each eigenvalue is one mode of the latent: inside the unit circle the operator shrinks "
        "it, on the circle it only turns it, outside it enlarges it.",
        spectrum({name: one.eigenvalues for name, one in drawn.items()}, colours))


def limits(
    extractors: Mapping[str, Extrapolations], colours: Mapping[str, str], source: Source
) -> Picture:
    """Fréchet distances over the number of samples."""
    return Picture(
        "extrapolation", "Fréchet distance without the bias of few samples",
        f"Fréchet distances of the {SOURCE_NAMES[source]} and the students over one divided by the "
        "number of samples, with lines that lead to infinitely many samples.",
        "Few samples make a Fréchet distance too large, by about the same for every model. Where a "
        "line meets the left edge (diamond) is its estimate for infinitely many samples.",
        extrapolation({name: (as_arrays(line), {student: as_arrays(own)
                                                for student, own in one.students.items()})
                       for name, one in extractors.items()
                       if (line := getattr(one, source)) is not None}, colours,
                      SOURCE_NAMES[source]),
        "What is too much is nearly in proportion to 1/n, the scale of the figure.")


def as_arrays(line: Extrapolation) -> Extrapolated:
    return Extrapolated(np.array(line.n, float), np.array(line.fd, float), line.infinite)


def embed(pngs: Mapping[Path, bytes]) -> dict[Path, Embedded]:
    """Pictures as URIs that fit into one page together.

    Small ones leave their share to the larger ones, which are as good as what is left allows.

    Args:
        pngs: content by the file that it comes from. Two pixels make one of CSS.

    Raises:
        DataError: one is no PNG.
    """
    left, found = PAGE_BYTES, {}
    for done, (path, png) in enumerate(sorted(pngs.items(), key=lambda item: len(item[1]))):
        image = decode(path, png)
        kind, content = fitting(png, image, left // (len(pngs) - done))
        left -= len(content)
        uri = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        found[path] = Embedded(uri, image.width // 2, image.height // 2)
    return found


def decode(path: Path, png: bytes) -> Image.Image:
    """A PNG's pixels.

    Raises:
        DataError: it is none.
    """
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as opened:
            return opened.convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is damaged ({error}): delete it and make it again") from error


def fitting(png: bytes, image: Image.Image, share: int) -> tuple[str, bytes]:
    """The first encoding that fits, or else the last and smallest: (format, content)."""
    for encoded in encodings(png, image):
        if len(encoded[1]) <= share:
            break
    return encoded


def encodings(png: bytes, image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """A picture as (format, content), from the exact one to ever smaller ones."""
    yield "png", png
    for quality in QUALITIES:
        yield "webp", as_webp(image, quality)
    yield "webp", as_webp(image.reduce(2), QUALITIES[-1])


def as_webp(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "webp", quality=quality, method=2)
    return buffer.getvalue()
