"""How the report names, explains and writes the figures of an evaluation."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

Figures = Mapping[str, float]
"""Figures of a teacher or student as evaluation.json has them."""


class Metric(NamedTuple):
    """One row of the table.

    Attributes:
        key: in evaluation.json.
        better: "lower", "higher" or, for what is no quality, "".
        text: what it is, in a sentence.
        write: the value as text.
        note: what a student's value is in proportion to, from its own and its teacher's figures.
    """

    key: str
    name: str
    better: str
    text: str
    write: Callable[[float], str]
    note: Callable[[Figures, Figures], str] = lambda student, teacher: ""


class Cell(NamedTuple):
    """A value and a remark below it; both empty where there is no such figure."""

    value: str
    note: str


class Row(NamedTuple):
    """A metric and its values: the teacher's, then every student's."""

    name: str
    better: str
    text: str
    cells: list[Cell]


class Headline(NamedTuple):
    """One large number and what it says."""

    number: str
    text: str


def number(value: float) -> str:
    """Three significant digits, or a whole number with separators."""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def times(value: float, unit: float) -> str:
    """How many times `unit` a value is."""
    ratio = value / unit if unit else float("inf")
    return f"{ratio:.2f}×" if ratio < 10 else f"{ratio:,.0f}×"


def of_permuted(key: str) -> Callable[[Figures, Figures], str]:
    def note(student: Figures, teacher: Figures) -> str:
        permuted = student[f"{key}_permuted"]
        return f"{percent(student[key] / permuted)} of {number(permuted)}" if permuted else ""

    return note


def of_teacher(key: str) -> Callable[[Figures, Figures], str]:
    return lambda student, teacher: f"{times(student[key], teacher[key])} the teacher’s"


METRICS = (
    Metric("fd_classifier", "Fréchet distance", "lower",
           "Distance to the real images, in the features of the classifier described below. "
           "It is measured as FID is, but its values cannot be compared with published FIDs.",
           number, of_teacher("fd_classifier")),
    Metric("is_classifier", "Classifier score", "higher",
           "The Inception Score with the classifier below in Inception’s place: high if every "
           "image looks like one class and all classes occur.", number),
    Metric("label_accuracy", "Right class", "higher",
           "Share of images that the classifier takes for the class that was asked for.", percent),
    Metric("label_agreement", "Same class as teacher", "higher",
           "Share of noises for which the classifier sees one class in both images.", percent),
    Metric("on_support", "On the board", "higher",
           "Share of points that lie on the dark cells, where all real points lie.", percent),
    Metric("sliced_wasserstein", "Sliced Wasserstein distance", "lower",
           "Distance to the real points, averaged over random directions.",
           number, of_teacher("sliced_wasserstein")),
    Metric("mse", "MSE to teacher", "lower",
           "Mean squared difference of student and teacher for the same noise; below it, its "
           "share of the difference when noises are mixed up.", number, of_permuted("mse")),
    Metric("lpips_vgg", "LPIPS to teacher", "lower",
           "Perceptual difference (VGG) of student and teacher for the same noise; below it, its "
           "share of the difference when noises are mixed up.", number, of_permuted("lpips_vgg")),
    Metric("nfe", "Network evaluations", "lower", "Passes through a network for one sample.",
           number),
    Metric("images_per_s", "Samples a second", "higher",
           "Measured with the same noise, batch, device and precision.", number,
           lambda student, teacher: f"{times(student['images_per_s'], teacher['images_per_s'])} "
                                    "the teacher’s"),
    Metric("parameters", "Parameters", "", "Numbers that were learned. The student’s include the "
           "data encoder, which sampling does not need.", number),
)


def table(teachers: Mapping[str, Figures], students: Mapping[str, Figures]) -> list[Row]:
    """The rows for which there is a figure.

    Args:
        teachers: by the student's name, the teacher's figures that were measured beside it.
        students: by name, the student's own.
    """
    teacher = shared_teacher(teachers)
    rows = []
    for metric in METRICS:
        cells = [cell(metric, teacher, None)]
        cells += [cell(metric, figures, teachers[name]) for name, figures in students.items()]
        if any(c.value for c in cells):
            rows.append(Row(metric.name, metric.better, metric.text, cells))
    return rows


def cell(metric: Metric, figures: Figures, teacher: Figures | None) -> Cell:
    """One figure, with its remark where it is a student's."""
    if metric.key not in figures:
        return Cell("", "")
    return Cell(metric.write(figures[metric.key]), metric.note(figures, teacher) if teacher else "")


def shared_teacher(teachers: Mapping[str, Figures]) -> dict[str, float]:
    """One set of figures for the teacher.

    Only its speed was measured anew beside each student; the first measurement stands for all.
    """
    return dict(next(iter(teachers.values())))


def headlines(student: Figures, teacher: Figures) -> list[Headline]:
    """Cost, speed and quality of one student, each as one number."""
    numbers = [
        Headline(f"{number(teacher['nfe'])} → {number(student['nfe'])}",
                 "network evaluations a sample"),
        Headline(times(student["images_per_s"], teacher["images_per_s"]),
                 "the teacher’s speed, measured side by side"),
    ]
    for key, text in (("fd_classifier", "the teacher’s Fréchet distance to real images"),
                      ("sliced_wasserstein", "the teacher’s distance to real points")):
        if key in student:
            numbers.append(Headline(times(student[key], teacher[key]), f"{text} (lower is better)"))
    if len(numbers) == 2:
        numbers.append(Headline(of_permuted("mse")(student, teacher).split(" of ")[0] or "–",
                                "of the MSE with mixed-up noises (lower is better)"))
    return numbers


def absences(kind: str, student: Figures) -> list[str]:
    """Why a figure that one might look for is not there."""
    lines = []
    if kind == "image" and "fd_classifier" not in student:
        lines.append("There is no Fréchet distance, score or class figure, since no classifier was "
                     "asked for (reference.classifier: null).")
    if kind == "image" and "lpips_vgg" not in student:
        lines.append("LPIPS was left out (evaluation.lpips_pairs: 0).")
    return lines
