"""The pictures of a report: drawn, kept as files, and small enough for the page."""

import base64
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from kdm_core.datasets import DatasetInfo
from kdm_core.errors import DataError
from kdm_core.figures.curves import Curve, training_curves
from kdm_core.figures.extrapolation import Extrapolated, extrapolation
from kdm_core.figures.grid import teacher_student_grid
from kdm_core.figures.scatter import noise_map
from kdm_core.figures.spectrum import spectrum
from kdm_core.samples import SOURCE_NAMES, Source
from pipeline.reporting.document import Extrapolations
from pipeline.reporting.reading import Samples
from pipeline.reporting.records import Extrapolation

GRID_IMAGES = 30
PAGE_BYTES = 2_600_000
"""Of all pictures on a page together, before base64 makes a third more of them."""
QUALITIES = (90, 75, 50)


class Picture(NamedTuple):
    """A figure for the page; `alt` says what is to be seen, `caption` what to look at."""

    name: str
    title: str
    alt: str
    caption: str
    figure: Figure


class Embedded(NamedTuple):
    """A picture as it stands in the page: its content as a URI, its size in CSS pixels."""

    uri: str
    width: int
    height: int


def samples(info: DatasetInfo, drawn: Mapping[str, Samples]) -> Picture:
    """What fits the data: pictures of images, maps of points."""
    first = next(iter(drawn.values()))
    made = {name: one.student for name, one in drawn.items()}
    students, source = " and ".join(drawn), SOURCE_NAMES[first.source]
    if info.samples.kind == "image":
        return Picture(
            "samples", "Samples", f"Rows of images of the {source} and, below, of {students}.",
            "A column is one noise, which none was trained on: each student’s image should be the "
            "one at the top. The images are the first ones, not chosen.",
            teacher_student_grid(first.given[:GRID_IMAGES],
                                 {name: images[:GRID_IMAGES] for name, images in made.items()},
                                 source=source))
    return Picture(
        "scatter", "Where noise goes", f"Points of the noise, the {source} and {students}, "
        "coloured by cell.",
        "Every point has the colour of the cell in which the sample of that noise lies in the "
        f"panel “{source}” (gray: off the dark cells). The noise panel shows which region of noise "
        "becomes which cell; a student that makes the same map has the same colours in the same "
        "cells.",
        noise_map(first.given, made, first.noise, source))


def curves(teacher: Mapping[str, Curve], students: Mapping[str, Mapping[str, Curve]]) -> Picture:
    """The course of all trainings."""
    trained = [*(["the teacher"] if teacher else []), *students]
    return Picture(
        "curves", "Training",
        f"Curves of the losses of {' and '.join(trained)} over steps.",
        "Held-out MSE is measured on pairs that were not trained on, as a share of the MSE when "
        "noises are mixed up: 1 is no better than any other sample, 0 is the same sample.",
        training_curves(teacher, students))


def eigenvalues(drawn: Mapping[str, Samples]) -> Picture:
    """The spectra of the students' operators."""
    return Picture(
        "spectrum", "Eigenvalues of the Koopman operator",
        f"Eigenvalues of {' and '.join(drawn)} in the complex plane with the unit circle.",
        "Each eigenvalue is one mode of the latent: inside the unit circle the operator shrinks "
        "it, on the circle it only turns it, outside it enlarges it.",
        spectrum({name: one.eigenvalues for name, one in drawn.items()}))


def limits(extractors: Mapping[str, Extrapolations], source: Source) -> Picture:
    """Fréchet distances over the number of samples."""
    return Picture(
        "extrapolation", "Fréchet distance without the bias of few samples",
        f"Fréchet distances of the {SOURCE_NAMES[source]} and the students over one divided by the "
        "number of samples, with lines that lead to infinitely many samples.",
        "Few samples make a Fréchet distance too large, by about the same for every model and "
        "nearly in proportion to 1/n. Where a line meets the left edge (diamond) is its estimate "
        "for infinitely many samples.",
        extrapolation({name: (as_arrays(line), {student: as_arrays(own)
                                                for student, own in one.students.items()})
                       for name, one in extractors.items()
                       if (line := getattr(one, source)) is not None}, SOURCE_NAMES[source]))


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
            return opened.convert("RGB")
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
