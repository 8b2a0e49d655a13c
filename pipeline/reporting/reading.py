"""Reads what the stages left; what is missing or damaged is named with the stage that makes it."""

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from kdm_core.errors import DataError
from kdm_core.figures.curves import Curve
from kdm_core.metrics.denoising.record import DenoisingCheck
from kdm_core.samples import Source
from pipeline.reporting.records import (
    PICTURES,
    Evaluation,
    FilterRecord,
    FindingRecord,
    TeacherRecord,
    Timing,
)
from pipeline.runtime import paths

# In the order in which they run; students' stages come after, one by one.
ORDER = ("prepare_data", "reference", "autoencoder", "teacher", "sample_pairs", "filter_pairs",
         "train_student", "evaluate", "study")


class Samples(NamedTuple):
    """Some noises (n, *shape) and labels (n,), -1 where there are none; samples of the teacher, or
    of the pairs where nobody knows it, and of the student of them; and the operator's eigenvalues
    (d,), none where it has no operator."""

    source: Source
    noise: NDArray[Any]
    labels: NDArray[np.integer]
    given: NDArray[Any]
    student: NDArray[Any]
    eigenvalues: NDArray[np.complexfloating]


class Study(NamedTuple):
    """A finding about one student, with its picture as PNG."""

    finding: FindingRecord
    png: bytes


def made_by(path: Path, stage: str) -> Path:
    """The path of a file that exists.

    Raises:
        DataError: it does not; the message names the stage that makes it.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing: run `dvc repro {stage}`")
    return path


def damaged(path: Path, stage: str, error: object) -> DataError:
    return DataError(f"{path} is damaged ({error}): delete it and run `dvc repro {stage}`")


def read_evaluation(name: str) -> Evaluation:
    """The figures of one student.

    Raises:
        DataError: the file is missing or damaged.
    """
    stage = f"evaluate@{name}"
    path = made_by(paths.EVALUATION / name / "evaluation.json", stage)
    return parse(Evaluation, path, stage)  # type: ignore[no-any-return]


def parse(kind: Any, path: Path, stage: str) -> Any:
    """A JSON file as the record that it should be.

    Raises:
        DataError: it is something else; the message says what is wrong first.
    """
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError as error:
        raise damaged(path, stage, first_problem(error)) from error


def first_problem(error: ValidationError) -> str:
    """Where the first problem lies, and what it is."""
    problem = error.errors(include_url=False)[0]
    place = ".".join(map(str, problem["loc"]))
    return f"{place}: {problem['msg']}" if place else problem["msg"]


def read_samples(name: str) -> Samples:
    """Samples of one student, for pictures.

    Raises:
        DataError: the file is missing or damaged.
    """
    stage = f"evaluate@{name}"
    path = made_by(paths.EVALUATION / name / "samples.npz", stage)
    try:
        with np.load(path, allow_pickle=False) as stored:
            source: Source = "pairs" if "pairs" in stored else "teacher"
            noise, labels, given, student, values = (
                stored[key] for key in ("noise", "labels", source, "student", "eigenvalues"))
        return Samples(source, noise, labels, given, student, values[:, 0] + 1j * values[:, 1])
    except (KeyError, IndexError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise damaged(path, stage, error) from error


def read_studies(names: Iterable[str]) -> dict[str, list[Study]] | None:
    """The findings about each student; None where no studies were made.

    Raises:
        DataError: those of a student are missing or damaged.
    """
    if not paths.STUDIES.is_dir():
        return None
    studies: dict[str, list[Study]] = {}
    for name in names:
        folder, stage = paths.STUDIES / name, f"study@{name}"
        findings = parse(list[FindingRecord], made_by(folder / "findings.json", stage), stage)
        pictures = {one.name: made_by(folder / PICTURES / f"{one.name}.png", stage)
                    for one in findings}
        studies[name] = [Study(one, pictures[one.name].read_bytes()) for one in findings]
    return studies


def read_check() -> DenoisingCheck | None:
    """How well the teacher denoises the data; None where that was not looked at.

    Raises:
        DataError: the file is missing or damaged.
    """
    path = made_by(paths.DETAILS / "teacher.json", "teacher")
    record: TeacherRecord = parse(TeacherRecord, path, "teacher")
    return record.check


def read_filtered() -> tuple[FilterRecord, dict[str, bytes]]:
    """Which pairs were left out and why, and the findings' pictures as PNG by name.

    Raises:
        DataError: something is missing or damaged.
    """
    path = made_by(paths.FILTERED / "filtered.json", "filter_pairs")
    record: FilterRecord = parse(FilterRecord, path, "filter_pairs")
    pictures = {one.name: made_by(paths.FILTERED / PICTURES / f"{one.name}.png", "filter_pairs")
                for one in record.findings}
    return record, {name: file.read_bytes() for name, file in pictures.items()}


def read_teacher_curves() -> dict[str, Curve]:
    """The teacher's training curves; none of one that was not trained here."""
    trained = (paths.CURVES / "teacher" / "plots").exists()
    return read_curves("teacher", "teacher") if trained else {}


def read_curves(name: str, stage: str) -> dict[str, Curve]:
    """The training curves that DVCLive wrote: one table of steps and values a curve.

    Raises:
        DataError: there are none, or a file is damaged.
    """
    folder = paths.CURVES / name / "plots" / "metrics"
    made_by(folder / "loss.tsv", stage)
    curves = {}
    for path in sorted(folder.glob("*.tsv")):
        try:
            steps, values = np.loadtxt(path, skiprows=1, ndmin=2).T
        except ValueError as error:
            raise damaged(path, stage, error) from error
        curves[path.stem] = Curve(steps, values)
    return curves


def read_timings(names: list[str]) -> dict[str, Timing]:
    """What the stages of this run noted about their time, in the order in which they run.

    Timings of students that were taken out of params.yaml may still lie there.

    Raises:
        DataError: a file is damaged.
    """
    timings = {}
    for stage in ORDER:
        for name in (stage, *(f"{stage}@{student}" for student in names)):
            path = paths.TIMINGS / f"{name}.json"
            if path.is_file():
                timings[name] = parse(Timing, path, name)
    return timings
