"""report: all results on one page that needs nothing else, as figures and as JSON."""

import base64
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kdm_core.datasets import DatasetInfo, open_dataset
from kdm_core.errors import DataError, MismatchError
from kdm_core.figures.curves import Curve, training_curves
from kdm_core.figures.grid import teacher_student_grid
from kdm_core.figures.scatter import noise_map
from kdm_core.figures.spectrum import spectrum
from kdm_core.serialization import read_json, write_atomic, write_json
from stages import paths
from stages.figures import save_figure
from stages.report_table import absences, headlines, shared_teacher, table
from stages.runner import Stage, run

TEMPLATES = Path(__file__).parent / "templates"
GRID_IMAGES = 30
SAME = ("n", "dataset", "teacher", "pairs")
"""Conditions without which students cannot be set side by side."""
# In the order in which they run; students' stages come after, one by one.
ORDER = ("prepare_data", "reference", "teacher", "sample_pairs", "train_student", "evaluate")
LABELS = {
    "n": "Noises compared, unseen in training", "reference": "Real samples compared with",
    "reference_n": "Number of real samples", "classifier_accuracy": "Classifier’s accuracy",
    "classifier_accuracy_n": "… on held-out images", "classifier": "Classifier’s fingerprint",
    "dataset": "Data set’s fingerprint", "teacher": "Teacher’s fingerprint",
    "pairs": "Pair store’s fingerprint", "students": "Students’ fingerprints",
    "lpips_n": "Pairs of LPIPS", "lpips_resolution": "Pixels of LPIPS, a side",
    "projections": "Directions of the sliced distance", "device": "Device",
    "precision": "Precision", "threads": "CPU threads", "torch": "PyTorch", "seed": "Seed",
}


class Evaluation(NamedTuple):
    """What the stage `evaluate` found out about one student."""

    teacher: dict[str, float]
    student: dict[str, float]
    conditions: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


class Picture(NamedTuple):
    """A figure for the page; `alt` says what is to be seen, `caption` what to look at."""

    name: str
    title: str
    alt: str
    caption: str
    figure: Figure


def main(stage: Stage) -> None:
    names = list(stage.params.students)
    dataset, _ = open_dataset(paths.DATASET)
    reference = read_json(made_by(paths.REFERENCE / "reference.json", "reference"))
    evaluations = {name: read_evaluation(name) for name in names}
    timings = read_timings(names)
    conditions = merge_conditions(evaluations, reference)
    conditions |= {"seed": stage.params.seed, **measured_on(timings, names)}
    teachers = {name: evaluation.teacher for name, evaluation in evaluations.items()}
    students = {name: evaluation.student for name, evaluation in evaluations.items()}
    write_json(paths.REPORTS / "report.json", {
        "dataset": dataset.info.source,
        "n": conditions["n"],
        "teacher": shared_teacher(teachers),
        "students": {name: {**figures, "speedup": figures["images_per_s"]
                            / teachers[name]["images_per_s"]}
                     for name, figures in students.items()},
        "stages": {name: timing["seconds"] for name, timing in timings.items()},
        "conditions": conditions,
    })
    pictures = draw(dataset.info, evaluations)
    for picture in pictures:
        save_figure(paths.FIGURES / f"{picture.name}.png", picture.figure)
    page = render(
        title=stage.params.report.title,
        lead=lead(dataset.info, stage, shared_teacher(teachers)),
        students=[{"name": name, "headlines": headlines(students[name], teachers[name])}
                  for name in names],
        rows=table(teachers, students),
        absent=absences(dataset.info.samples.kind, students[names[0]]),
        pictures=[embed(picture) for picture in pictures],
        conditions=[(LABELS.get(key, key), by_student(conditions[key]))
                    for key in sorted(conditions, key=label_place)],
        timings=timings,
    )
    write_atomic(paths.REPORTS / "report.html", page.encode())
    stage.say(f"{paths.REPORTS / 'report.html'}")


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
    """The results of one student.

    Raises:
        DataError: a file is missing or damaged.
    """
    folder, stage = paths.EVALUATION / name, f"evaluate@{name}"
    path = made_by(folder / "evaluation.json", stage)
    document = read_json(path)
    archive = made_by(folder / "samples.npz", stage)
    try:
        teacher, student, conditions = (dict(document[key])
                                        for key in ("teacher", "student", "conditions"))
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, stage, error) from error
    try:
        with np.load(archive, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in ("noise", "teacher", "student", "eigenvalues")}
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise damaged(archive, stage, error) from error
    return Evaluation(teacher, student, conditions, arrays)


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


def read_timings(names: list[str]) -> dict[str, dict[str, Any]]:
    """What the stages of this run noted about their time, in the order in which they run.

    Timings of students that were taken out of params.yaml may still lie there.
    """
    timings = {}
    for stage in ORDER:
        for name in (stage, *(f"{stage}@{student}" for student in names)):
            path = paths.TIMINGS / f"{name}.json"
            if path.is_file():
                timings[name] = read_json(path)
    return timings


def merge_conditions(
    evaluations: dict[str, Evaluation], reference: dict[str, Any]
) -> dict[str, Any]:
    """The conditions of all evaluations; those that differ, by the student's name.

    Raises:
        MismatchError: the students were not evaluated on the same noise of the same teacher.
    """
    merged: dict[str, Any] = {}
    for key in sorted({key for one in evaluations.values() for key in one.conditions}):
        values = {name: one.conditions.get(key) for name, one in evaluations.items()}
        if key == "student":
            merged["students"] = values
            continue
        first = next(iter(values.values()))
        agree = all(value == first for value in values.values())
        if not agree and key in SAME:
            raise MismatchError(f"{paths.EVALUATION}: the evaluations of {', '.join(values)} "
                                f"differ in '{key}': run `dvc repro evaluate`")
        merged[key] = first if agree else values
    if "classifier" in merged:
        merged["classifier_accuracy_n"] = reference["accuracy_n"]
    return merged


def measured_on(timings: dict[str, dict[str, Any]], names: list[str]) -> dict[str, Any]:
    """Threads and torch of the evaluations, as far as their timings tell."""
    found = {name: timings[f"evaluate@{name}"] for name in names if f"evaluate@{name}" in timings}
    conditions: dict[str, Any] = {}
    for key in ("threads", "torch"):
        values = {name: timing[key] for name, timing in found.items() if key in timing}
        if values:
            conditions[key] = values if len(set(values.values())) > 1 else next(
                iter(values.values()))
    return conditions


def draw(info: DatasetInfo, evaluations: dict[str, Evaluation]) -> list[Picture]:
    """The figures that fit the data: pictures of images, maps of points."""
    first = next(iter(evaluations.values())).arrays
    made = {name: one.arrays["student"] for name, one in evaluations.items()}
    students = " and ".join(evaluations)
    if info.samples.kind == "image":
        teacher = first["teacher"][:GRID_IMAGES]
        pictures = [Picture(
            "samples", "Samples", f"Rows of images of the teacher and, below, of {students}.",
            "A column is one noise, which none was trained on: each student’s image should be the "
            "teacher’s above it. The images are the first ones, not chosen.",
            teacher_student_grid(teacher, {n: s[:GRID_IMAGES] for n, s in made.items()}))]
    else:
        pictures = [Picture(
            "scatter", "Where noise goes", f"Points of the noise, the teacher and {students}, "
            "coloured by cell.",
            "Every point has the colour of the cell in which the teacher’s sample of that noise "
            "lies (gray: off the dark cells). The noise panel shows which region of noise becomes "
            "which cell; a student that makes the same map has the teacher’s colours in the "
            "teacher’s cells.",
            noise_map(first["teacher"], made, first["noise"]))]
    curves = {name: read_curves(name, f"train_student@{name}") for name in evaluations}
    pictures.append(Picture(
        "curves", "Training", f"Curves of the losses of the teacher and of {students} over steps.",
        "Held-out MSE is measured on pairs that were not trained on, as a share of the MSE when "
        "noises are mixed up: 1 is no better than any other sample, 0 is the teacher.",
        training_curves(read_teacher_curves(), curves)))
    eigenvalues = {name: as_complex(one.arrays["eigenvalues"])
                   for name, one in evaluations.items()}
    pictures.append(Picture(
        "spectrum", "Eigenvalues of the Koopman operator",
        f"Eigenvalues of {students} in the complex plane with the unit circle.",
        "Each eigenvalue is one mode of the latent: inside the unit circle the operator shrinks "
        "it, on the circle it only turns it, outside it enlarges it.", spectrum(eigenvalues)))
    return pictures


def as_complex(pairs: NDArray[Any]) -> NDArray[np.complex128]:
    """Real and imaginary parts (d, 2) as complex numbers (d,)."""
    values: NDArray[np.complex128] = pairs[:, 0] + 1j * pairs[:, 1]
    return values


def embed(picture: Picture) -> dict[str, Any]:
    """A saved picture for the template: its texts, size in CSS pixels, and content as a URI."""
    png = (paths.FIGURES / f"{picture.name}.png").read_bytes()
    # The size stands in the header; figures have two pixels for one of CSS.
    width, height = (int.from_bytes(png[at : at + 4], "big") // 2 for at in (16, 20))
    return {"title": picture.title, "alt": picture.alt, "caption": picture.caption,
            "width": width, "height": height,
            "uri": "data:image/png;base64," + base64.b64encode(png).decode()}


def lead(info: DatasetInfo, stage: Stage, teacher: dict[str, float]) -> str:
    """What was distilled, in one sentence."""
    unit = "image" if info.samples.kind == "image" else "point"
    students = stage.params.students
    kinds = [f"{name} ({config.model.operator.kind} Koopman operator on "
             f"{config.model.latent} dimensions)" for name, config in students.items()]
    given = " of a given class" if info.samples.num_classes else ""
    return (f"A teacher that evaluates its network {teacher['nfe']:g} times for every "
            f"{unit}{given} of “{info.source}” ({info.train:,} real {unit}s) was distilled into "
            f"{'one student' if len(kinds) == 1 else f'{len(kinds)} students'} that "
            f"{'needs' if len(kinds) == 1 else 'need'} a single evaluation: {', '.join(kinds)}.")


def label_place(key: str) -> tuple[int, str]:
    """Sorts conditions as `LABELS` does, those without a label last."""
    labels = list(LABELS)
    return (labels.index(key) if key in labels else len(labels)), key


def by_student(value: Any) -> list[tuple[str, str]]:
    """A condition as (student, text), the student empty where it holds for all."""
    items = value.items() if isinstance(value, dict) else [("", value)]
    return [(name, f"{item:.4g}" if isinstance(item, float) else str(item))
            for name, item in items]


def render(**content: Any) -> str:
    """The page, with everything that is not the template's own escaped."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("report.html.j2").render(**content)


if __name__ == "__main__":
    run("report", main)
