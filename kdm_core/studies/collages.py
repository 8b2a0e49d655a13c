"""A blind human study: collages of teacher and student, and the count of what raters chose.

As in the paper (section 6.1, appendix E.4): each slide shows a collage of either side by side in
random order, and raters say which looks more realistic. Nothing that they see tells which is which;
that lies in the answer key.
"""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from torch import Tensor

from kdm_core.config import Config
from kdm_core.errors import DataError, KDMError
from kdm_core.figures.collage import slide
from kdm_core.serialization import read_json

Side = Literal["left", "right"]
HEADER = ["rater", "slide", "choice"]


class Key(Config):
    """What the slides of a study are.

    Attributes:
        student, pairs: the student's name, and fingerprints of it and of the pairs.
        seed: that decides the order.
        side: images along a collage's side.
        students: where the student's collage is on slides 1, 2, …
    """

    student: str
    fingerprint: str
    pairs: str
    seed: int = Field(ge=0)
    side: int = Field(ge=1)
    students: list[Side] = Field(min_length=1)


class Answer(NamedTuple):
    """One choice; `student` is whether it fell on the student's collage."""

    rater: str
    slide: int
    student: bool


class Count(NamedTuple):
    """How many of `n` choices fell on the student's collage."""

    student: int
    n: int

    @property
    def ratio(self) -> float:
        return self.student / self.n

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Clopper and Pearson's (1934) exact interval of the ratio, for independent choices."""
        from scipy.stats import binomtest

        found = binomtest(self.student, self.n).proportion_ci(level, method="exact")
        return float(found.low), float(found.high)

    @property
    def p_value(self) -> float:
        """The chance that raters who see no difference are as uneven or more: exact, two-sided."""
        from scipy.stats import binomtest

        return float(binomtest(self.student, self.n, 0.5).pvalue)


class Tally(NamedTuple):
    """Counts over all choices, for each rater, and for each slide that was rated."""

    overall: Count
    raters: dict[str, Count]
    slides: dict[int, Count]


def draw_sides(slides: int, seed: int) -> list[Side]:
    """Where the student's collage is on each slide.

    On as many slides left as right (but for one), so that a rater who prefers one side does not
    count for either model.
    """
    generator = np.random.default_rng(seed)
    left = (generator.permutation(slides) + generator.integers(2)) % 2 == 0
    return ["left" if is_left else "right" for is_left in left]


def draw_slides(
    teacher: Tensor, student: Tensor, sides: list[Side], side: int
) -> list[NDArray[np.uint8]]:
    """A picture (h, w, 3) for each slide, each of other samples, in order.

    Both collages show what becomes of the same noises at the same places, as in the paper's
    Fig. 4: raters then choose between two ways of drawing the same things, and not between
    motives. Which is which that does not tell.

    Args:
        teacher, student: samples (n, C, H, W) in [-1, 1] of the same noise, C 1 or 3.
        sides: where the student's collage goes on each slide.
        side: images along a collage's side.

    Raises:
        KDMError: there are too few samples, or they are no pictures.
    """
    if teacher.ndim != 4 or teacher.shape[1] not in (1, 3):
        raise KDMError(f"samples of shape {tuple(teacher.shape[1:])} are no pictures, and raters "
                       "cannot look at them")
    size = side**2
    if len(teacher) < len(sides) * size:
        raise KDMError(f"{len(sides)} slides of {side} × {side} need {len(sides) * size} unseen "
                       f"pairs, there are {len(teacher)}: take fewer or smaller slides, or sample "
                       "more test pairs", field="slides")
    pictures = []
    for index, place in enumerate(sides):
        rows = slice(index * size, (index + 1) * size)
        made, theirs = student[rows].numpy(), teacher[rows].numpy()
        pictures.append(slide(made, theirs) if place == "left" else slide(theirs, made))
    return pictures


def read_key(path: Path) -> Key:
    """Read an answer key.

    Raises:
        DataError: it is missing, damaged or something else.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing: the answer key is written with the slides")
    try:
        return Key.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its content"
        raise DataError(f"{path} is no answer key ({where}: {first['msg']}): give the file that "
                        "was written with the slides") from error


def read_answers(paths: Iterable[Path], key: Key) -> list[Answer]:
    """Read tables with the columns rater, slide and choice (left or right), CSV in UTF-8.

    Raises:
        DataError: a file is missing or a line is malformed, names no slide of the key, or rates
            one that its rater has rated before; the message names the line.
    """
    answers: list[Answer] = []
    seen: dict[tuple[str, int], str] = {}
    for path in paths:
        for number, row in read_rows(path):
            where = f"{path}, line {number}"
            answer = parse_answer(row, key, where)
            rated = (answer.rater, answer.slide)
            if rated in seen:
                raise DataError(f"{where}: {answer.rater} has rated slide {answer.slide} in "
                                f"{seen[rated]} already; keep one of the two")
            seen[rated] = where
            answers.append(answer)
    if not answers:
        raise DataError("the tables hold no answers: give those that the raters filled in")
    return answers


def read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """The rows of a table that are not blank, without its header, with the numbers of their lines.

    Raises:
        DataError: there is no such table.
    """
    try:
        # Spreadsheets put a byte-order mark before UTF-8.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: give the table that a rater filled in") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV table in UTF-8 ({error}): save it as one") from error
    if not rows or [cell.lower() for cell in rows[0][1]] != HEADER:
        raise DataError(f"{path}, line 1: the header is not {','.join(HEADER)}; fill in the "
                        "answers.csv that lies beside the slides, with commas")
    return [(number, row) for number, row in rows[1:] if any(row)]


def parse_answer(row: list[str], key: Key, where: str) -> Answer:
    """One row of a table.

    Raises:
        DataError: it is malformed.
    """
    if len(row) != len(HEADER):
        raise DataError(f"{where}: {len(row)} columns instead of {len(HEADER)}")
    rater, number, choice = row
    if not rater:
        raise DataError(f"{where}: no rater; write a name or number")
    # Spreadsheets turn 01 into 1. ASCII of few digits, since int() takes more than decimal digits.
    digits = number.isascii() and number.isdecimal() and len(number) < 10
    if not digits or not 1 <= int(number) <= len(key.students):
        raise DataError(f"{where}: there is no slide '{number}'; they are 1 to "
                        f"{len(key.students)}")
    if choice.lower() not in ("left", "right"):
        raise DataError(f"{where}: the choice is '{choice}'; write left or right, one of them at "
                        "random where both look alike")
    return Answer(rater, int(number), choice.lower() == key.students[int(number) - 1])


def tally(answers: list[Answer]) -> Tally:
    """Count at least one answer."""

    def count(some: list[Answer]) -> Count:
        return Count(sum(answer.student for answer in some), len(some))

    raters, slides = ({a.rater for a in answers}, {a.slide for a in answers})
    return Tally(count(answers),
                 {r: count([a for a in answers if a.rater == r]) for r in sorted(raters)},
                 {s: count([a for a in answers if a.slide == s]) for s in sorted(slides)})
