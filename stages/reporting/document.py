"""report.json: everything that was measured in a run, made from the evaluations and read again."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from kdm_core.metrics.denoising.record import DenoisingCheck
from stages.reporting.records import (
    Evaluation,
    ExtractorRecord,
    Extrapolation,
    Figures,
    Measured,
    Number,
    Record,
)

Values = dict[str, Number]
Bounds = dict[str, tuple[Number, Number]]


class ByModel(Record):
    """Something of every model of a run."""

    teacher: Bounds = {}
    real: Bounds = {}
    students: dict[str, Bounds] = {}
    ratios: dict[str, Bounds] = {}


class Counts(Record):
    """From how many samples figures come that come from others than the run's `n`."""

    teacher: dict[str, int] = {}
    real: dict[str, int] = {}
    students: dict[str, dict[str, int]] = {}


class Extrapolations(Record):
    """Fréchet distances over the number of samples, in one extractor's features."""

    teacher: Extrapolation
    students: dict[str, Extrapolation]


class Document(Record):
    """The whole of report.json.

    Numbers stand in dictionaries, where `dvc metrics` and `dvc exp show` find them. Intervals are
    lists, which these leave out.

    Attributes:
        dataset: the source of the data.
        kind: of the samples.
        n: samples of each model, unless `counts` says otherwise.
        real: figures of held-out real samples under the same conditions.
        students: figures by name, with the `speedup` over the teacher measured beside it.
        ratios: of a student's distances to its teacher's.
        stages: seconds that each took.
        wall_s: seconds in which any of them was at work.
        check: how the teacher denoises held-out data.
        studies: numbers by student and study.
    """

    title: str
    dataset: str
    kind: Literal["image", "points"]
    n: int
    teacher: Values
    real: Values = {}
    students: dict[str, Values]
    ratios: dict[str, Values] = {}
    intervals: ByModel = ByModel()
    counts: Counts = Counts()
    extrapolation: dict[str, Extrapolations] = {}
    extractors: dict[str, ExtractorRecord] = {}
    warnings: list[str] = []
    absent: list[str] = []
    conditions: dict[str, Any]
    stages: dict[str, Number] = {}
    wall_s: Number | None = None
    check: DenoisingCheck | None = None
    studies: dict[str, dict[str, dict[str, Any]]] = {}


class Model(NamedTuple):
    """A row of the chief table: whose figures, and beside what.

    Attributes:
        ratios: of a student's distances to its teacher's.
        n: samples from which figures come if they do not say otherwise.
    """

    name: str
    role: Literal["teacher", "student", "real"]
    figures: Figures
    ratios: Figures
    n: int


def of_evaluations(evaluations: Mapping[str, Evaluation], n: int) -> dict[str, Any]:
    """The fields of a `Document` that come from evaluations, by the students' names.

    The teacher's speed alone was measured anew beside each student; the first measurement stands
    for all, and each `speedup` is by its own.
    """
    first = next(iter(evaluations.values()))
    students = {name: one.student for name, one in evaluations.items()}
    ratios = {name: one.ratios for name, one in evaluations.items()}
    return {
        "teacher": values(first.teacher),
        "real": values(first.real),
        "students": {name: values(one.student) | speedup(one)
                     for name, one in evaluations.items()},
        "ratios": {name: values(figures) for name, figures in ratios.items() if figures},
        "intervals": ByModel(
            teacher=bounds(first.teacher), real=bounds(first.real),
            students={name: bounds(figures) for name, figures in students.items()},
            ratios={name: bounds(figures) for name, figures in ratios.items()}),
        "counts": Counts(
            teacher=counts(first.teacher, n), real=counts(first.real, n),
            students={name: counts(figures, n) for name, figures in students.items()}),
        "extrapolation": extrapolations(evaluations),
        "extractors": first.extractors,
        "warnings": merge({name: one.warnings for name, one in evaluations.items()}),
        "absent": merge({name: one.absent for name, one in evaluations.items()}),
    }


def values(figures: Figures) -> Values:
    return {key: one.value for key, one in figures.items()}


def bounds(figures: Figures) -> Bounds:
    return {key: one.interval for key, one in figures.items() if one.interval is not None}


def counts(figures: Figures, n: int) -> dict[str, int]:
    return {key: one.n for key, one in figures.items() if one.n is not None and one.n != n}


def speedup(evaluation: Evaluation) -> Values:
    """The student's samples a second over its teacher's, where both were measured."""
    student, teacher = (figures.get("images_per_s")
                        for figures in (evaluation.student, evaluation.teacher))
    return {"speedup": student.value / teacher.value} if student and teacher else {}


def extrapolations(evaluations: Mapping[str, Evaluation]) -> dict[str, Extrapolations]:
    """By extractor: the teacher's, and those of all students that have one."""
    found: dict[str, Extrapolations] = {}
    first = next(iter(evaluations.values())).extrapolation
    for extractor, models in first.items():
        students = {name: one.extrapolation[extractor]["student"]
                    for name, one in evaluations.items()
                    if "student" in one.extrapolation.get(extractor, {})}
        if "teacher" in models:
            found[extractor] = Extrapolations(teacher=models["teacher"], students=students)
    return found


def merge(lines: Mapping[str, list[str]]) -> list[str]:
    """Lines about students: once where they are about all, else with the student's name."""
    merged: dict[str, list[str]] = {}
    for name, own in lines.items():
        for line in own:
            merged.setdefault(line, []).append(name)
    return [line if len(names) == len(lines) else f"{', '.join(names)}: {line}"
            for line, names in merged.items()]


def models(document: Document) -> list[Model]:
    """All models of a run with their figures: the teacher, its students, real samples."""
    intervals, sizes, n = document.intervals, document.counts, document.n
    found = [Model("teacher", "teacher",
                   measured(document.teacher, intervals.teacher, sizes.teacher, n), {}, n)]
    for name, figures in document.students.items():
        found.append(Model(
            name, "student",
            measured(figures, intervals.students.get(name, {}), sizes.students.get(name, {}), n),
            measured(document.ratios.get(name, {}), intervals.ratios.get(name, {}), {}, n), n))
    if document.real:
        found.append(Model("held-out real data", "real",
                           measured(document.real, intervals.real, sizes.real, n), {}, n))
    return found


def measured(figures: Values, intervals: Bounds, sizes: dict[str, int], n: int) -> Figures:
    return {key: Measured(value=value, interval=intervals.get(key), n=sizes.get(key, n))
            for key, value in figures.items()}
