"""report.json: everything that was measured in a run, made from the evaluations and read again."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from kdm_core.metrics.denoising.record import DenoisingCheck
from kdm_core.samples import SOURCE_NAMES, Kind, Source
from pipeline.reporting.records import (
    Evaluation,
    ExtractorRecord,
    Extrapolation,
    Figures,
    Measured,
    Number,
    Record,
    SeenRecord,
    VerdictRecord,
)

Values = dict[str, Number]
Bounds = dict[str, tuple[Number, Number]]


class ByModel(Record):
    """Something of every model of a run."""

    teacher: Bounds = {}
    pairs: Bounds = {}
    real: Bounds = {}
    autoencoded: Bounds = {}
    students: dict[str, Bounds] = {}
    ratios: dict[str, Bounds] = {}


class Counts(Record):
    """From how many samples figures come that come from others than the run's `n`."""

    teacher: dict[str, int] = {}
    pairs: dict[str, int] = {}
    real: dict[str, int] = {}
    autoencoded: dict[str, int] = {}
    students: dict[str, dict[str, int]] = {}


class Extrapolations(Record):
    """Fréchet distances over the number of samples, in one extractor's features.

    Attributes:
        teacher, pairs: of that of both which there is.
    """

    teacher: Extrapolation | None = None
    pairs: Extrapolation | None = None
    students: dict[str, Extrapolation]


class AtEqualN(Record):
    """Figures of `n` samples of every model and as many real ones: those can be compared."""

    n: int
    teacher: Values = {}
    pairs: Values = {}
    students: dict[str, Values] = {}
    real: Values = {}
    autoencoded: Values = {}
    intervals: ByModel = ByModel()


class Verdicts(Record):
    """On every model of a run."""

    teacher: VerdictRecord | None = None
    pairs: VerdictRecord | None = None
    students: dict[str, VerdictRecord] = {}


class Document(Record):
    """The whole of report.json.

    Numbers stand in dictionaries, where `dvc metrics` and `dvc exp show` find them. Intervals are
    lists, which these leave out.

    Attributes:
        dataset: the source of the data.
        kind: of the samples.
        n: samples of each model, unless `counts` says otherwise.
        verdicts: a word on each model, and why.
        teacher: its figures; none where nobody knows which teacher made the pairs, and then
        pairs: those of the pairs' samples.
        autoencoded: of those of `real` as an autoencoder gives them back, the best that models of
            its latents can reach; none where models learn images themselves.
        real: figures of n other real samples; none where there are fewer: figures that depend on
            the number of samples are then compared in
        at_equal_n: as many of each model as there are other real samples.
        students: figures by name, with the `speedup` over the teacher measured beside it.
        ratios: of a student's distances to its teacher's.
        seen: which of a student's figures flatter it.
        intervals, counts: of the figures.
        stages: seconds that each took.
        wall_s: seconds in which any of them was at work.
        check: how the teacher denoises held-out data.
        studies: numbers by student and study.
    """

    title: str
    dataset: str
    kind: Kind
    n: int
    verdicts: Verdicts = Verdicts()
    teacher: Values = {}
    pairs: Values = {}
    real: Values = {}
    autoencoded: Values = {}
    students: dict[str, Values]
    at_equal_n: AtEqualN | None = None
    ratios: dict[str, Values] = {}
    seen: dict[str, SeenRecord] = {}
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

    @property
    def source(self) -> Source:
        """What the students stand beside."""
        return "pairs" if self.pairs else "teacher"

    def failed(self, student: str) -> bool:
        """Whether that is the verdict on a student."""
        known = self.verdicts.students.get(student)
        return known is not None and known.word == "failed"


THROUGH = "{}, through the autoencoder"


class Model(NamedTuple):
    """A row of the chief table: whose figures, and beside what.

    Attributes:
        n: samples from which figures come if they do not say otherwise; figures that depend on it
            can be compared within one n.
        ratios: of a student's distances to its teacher's.
        verdict: the word on it; empty where there is none.
        seen: which of its figures flatter it.
    """

    name: str
    role: Literal["teacher", "pairs", "student", "real"]
    figures: Figures
    n: int
    ratios: Figures = {}
    verdict: str = ""
    seen: SeenRecord = SeenRecord()


def of_evaluations(evaluations: Mapping[str, Evaluation], n: int) -> dict[str, Any]:
    """The fields of a `Document` that come from evaluations, by the students' names.

    The teacher's speed alone was measured anew beside each student; the first measurement stands
    for all, and each `speedup` is by its own.
    """
    first = next(iter(evaluations.values()))
    students = {name: one.student for name, one in evaluations.items()}
    ratios = {name: one.ratios for name, one in evaluations.items()}
    return {
        "verdicts": verdicts(evaluations),
        "teacher": values(first.teacher),
        "pairs": values(first.pairs),
        "real": values(first.real),
        "autoencoded": values(first.autoencoded),
        "students": {name: values(one.student) | speedup(one)
                     for name, one in evaluations.items()},
        "ratios": {name: values(figures) for name, figures in ratios.items() if figures},
        "seen": {name: one.seen for name, one in evaluations.items()
                 if one.seen != SeenRecord()},
        "at_equal_n": at_equal_n(evaluations),
        "intervals": ByModel(
            teacher=bounds(first.teacher), pairs=bounds(first.pairs), real=bounds(first.real),
            autoencoded=bounds(first.autoencoded),
            students={name: bounds(figures) for name, figures in students.items()},
            ratios={name: bounds(figures) for name, figures in ratios.items()}),
        "counts": Counts(
            teacher=counts(first.teacher, n), pairs=counts(first.pairs, n),
            real=counts(first.real, n), autoencoded=counts(first.autoencoded, n),
            students={name: counts(figures, n) for name, figures in students.items()}),
        "extrapolation": extrapolations(evaluations),
        "extractors": first.extractors,
        "warnings": merge({name: one.warnings for name, one in evaluations.items()}),
        "absent": merge({name: one.absent for name, one in evaluations.items()}),
    }


def verdicts(evaluations: Mapping[str, Evaluation]) -> Verdicts:
    """The words on all models; those on the teacher, or the pairs, are the same everywhere."""
    first = next(iter(evaluations.values())).verdicts
    return Verdicts(
        teacher=first.get("teacher"), pairs=first.get("pairs"),
        students={name: one.verdicts["student"] for name, one in evaluations.items()
                  if "student" in one.verdicts})


def at_equal_n(evaluations: Mapping[str, Evaluation]) -> AtEqualN | None:
    """What was measured of as many samples as there are real ones, if those are fewer."""
    first = next(iter(evaluations.values()))
    if not first.at_equal_n:
        return None
    teacher, pairs, real, autoencoded = (
        first.at_equal_n.get(who, {}) for who in ("teacher", "pairs", "real", "autoencoded"))
    students = {name: one.at_equal_n.get("student", {}) for name, one in evaluations.items()}
    return AtEqualN(
        n=first.conditions["real_n"],
        teacher=values(teacher), pairs=values(pairs), real=values(real),
        autoencoded=values(autoencoded),
        students={name: values(own) for name, own in students.items()},
        intervals=ByModel(teacher=bounds(teacher), pairs=bounds(pairs), real=bounds(real),
                          autoencoded=bounds(autoencoded),
                          students={name: bounds(own) for name, own in students.items()}))


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
    """By extractor: the teacher's or the pairs', and those of all students that have one."""
    found: dict[str, Extrapolations] = {}
    first = next(iter(evaluations.values())).extrapolation
    for extractor, models in first.items():
        students = {name: one.extrapolation[extractor]["student"]
                    for name, one in evaluations.items()
                    if "student" in one.extrapolation.get(extractor, {})}
        if "teacher" in models or "pairs" in models:
            found[extractor] = Extrapolations(teacher=models.get("teacher"),
                                              pairs=models.get("pairs"), students=students)
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
    """All models of a run with their figures: the teacher, its students, real samples; then, where
    there are fewer real samples, all of them at as many."""
    intervals, sizes, n = document.intervals, document.counts, document.n
    words = document.verdicts
    role = document.source
    own = getattr(words, role)
    found = [Model(SOURCE_NAMES[role], role, measured(getattr(document, role),
                                                      getattr(intervals, role),
                                                      getattr(sizes, role), n), n,
                   verdict="" if own is None else own.word)]
    for name, figures in document.students.items():
        found.append(Model(
            name, "student",
            measured(figures, intervals.students.get(name, {}), sizes.students.get(name, {}), n), n,
            measured(document.ratios.get(name, {}), intervals.ratios.get(name, {}), {}, n),
            words.students[name].word if name in words.students else "", seen_by(document, name)))
    if document.real:
        found.append(Model(
            real_name(document), "real",
            measured(document.real, intervals.real, sizes.real, n), real_n(document)))
    if document.autoencoded:
        found.append(Model(
            THROUGH.format(real_name(document)), "real",
            measured(document.autoencoded, intervals.autoencoded, sizes.autoencoded, n),
            real_n(document)))
    return found + models_at(document, document.at_equal_n)


def models_at(document: Document, equal: AtEqualN | None) -> list[Model]:
    """All models of a run at the number of samples that other real data have."""
    if equal is None:
        return []
    n, intervals, role = equal.n, equal.intervals, document.source
    found = [Model(SOURCE_NAMES[role], role,
                   measured(getattr(equal, role), getattr(intervals, role), {}, n), n)]
    found += [Model(name, "student", measured(figures, intervals.students.get(name, {}), {}, n), n,
                    seen=seen_by(document, name))
              for name, figures in equal.students.items()]
    found.append(Model(real_name(document), "real",
                       measured(equal.real, intervals.real, {}, n), n))
    if equal.autoencoded:
        found.append(Model(THROUGH.format(real_name(document)), "real",
                           measured(equal.autoencoded, intervals.autoencoded, {}, n), n))
    return found


def seen_by(document: Document, name: str) -> SeenRecord:
    """Which of a student's figures flatter it."""
    return document.seen.get(name, SeenRecord())


def real_name(document: Document) -> str:
    """What the other real samples are: the test split has never been trained on."""
    split = document.conditions.get("real", "test split")
    return "held-out real data" if split == "test split" else f"real data, {split}"


def real_n(document: Document) -> int:
    """How many real samples `document.real` comes from; `counts` tells that of older reports."""
    known = document.conditions.get("real_n")
    return known if isinstance(known, int) else min(document.counts.real.values(),
                                                    default=document.n)


def measured(figures: Values, intervals: Bounds, sizes: dict[str, int], n: int) -> Figures:
    return {key: Measured(value=value, interval=intervals.get(key), n=sizes.get(key, n))
            for key, value in figures.items()}
