"""Which students a page shows, and the teacher that stands beside them."""

from pathlib import Path
from typing import NamedTuple

import torch

from kdm_core.classes import require_order
from kdm_core.compute import Precision
from kdm_core.errors import KDMError
from kdm_core.pairs.store import PairStore
from kdm_core.solvers import SolverConfig
from kdm_core.students.base import Student
from kdm_core.teachers import Teacher, load_sampled
from pipeline.kdm.student import evaluation_of_run, load
from pipeline.params.run import load_params
from pipeline.params.teacher import NoTeacher
from pipeline.runtime.paths import PAIRS, STUDENTS, TEACHER


class PlayError(KDMError):
    """There is nothing to play with, or not like this."""


class SampledTeacher(NamedTuple):
    """A teacher, and how it made the pairs."""

    model: Teacher
    solver: SolverConfig
    precision: Precision


class Player(NamedTuple):
    """A student, and its teacher or why there is none.

    Attributes:
        precision: of its matrix products: that of the pairs, as in an evaluation.
    """

    name: str
    student: Student
    precision: Precision
    teacher: SampledTeacher | None
    absent: str


class ProjectTeacher(NamedTuple):
    """The teacher of the current folder's project, or why there is none."""

    found: SampledTeacher | None
    fingerprint: str | None
    absent: str


def find_players(sources: list[str], device: torch.device) -> list[Player]:
    """Load students and the teacher of the current folder.

    Args:
        sources: folders, or OWNER/NAME on the hub; empty for all students of the current folder.

    Raises:
        PlayError: there are none, or one makes no pictures.
        KDMError: one cannot be loaded.
    """
    found = {}
    for name, source in named(sources or own_students()).items():
        student, fingerprint = load(source)
        require_pictures(name, student)
        evaluation_of_run(student, fingerprint, name)
        found[name] = student.to(device)
    teacher = find_teacher(device)
    return [beside(name, student, teacher) for name, student in found.items()]


def own_students() -> list[str]:
    """The folders of the students of the current folder's run.

    Raises:
        PlayError: there are none.
    """
    found = sorted(path.parent for path in STUDENTS.glob("*/config.json"))
    if not found:
        raise PlayError(f"no students in {Path.cwd() / STUDENTS}: run this in the folder of a "
                        "project whose students are trained (`dvc repro` trains them), or name a "
                        "student's folder: kdm play DIR")
    return [str(folder) for folder in found]


def named(sources: list[str]) -> dict[str, str]:
    """Students by what the page calls them: the folder's name, or all of it if there are several
    of that name."""
    names = [Path(source).resolve().name for source in sources]
    return {name if names.count(name) == 1 else source: source
            for name, source in zip(names, sources, strict=True)}


def require_pictures(name: str, student: Student) -> None:
    """Make sure that samples can be shown.

    Raises:
        PlayError: they are no pictures.
    """
    spec = student.shown
    if spec.kind == "latent":
        raise PlayError(f"{name} makes latents and came without their decoder, so that there are "
                        "no pictures: leave it out, or write its samples with `kdm sample DIR "
                        "--out samples.npz`")
    if spec.kind != "image":
        raise PlayError(f"{name} makes points, and this page shows pictures only: leave it out, "
                        "or draw its points with `kdm sample DIR --out points.png`")
    if spec.shape[0] not in (1, 3):
        raise PlayError(f"{name} makes images of {spec.shape[0]} channels, which are no pictures: "
                        "leave it out, or write its samples with `kdm sample DIR --out "
                        "samples.npz`")


def find_teacher(device: torch.device) -> ProjectTeacher:
    """The teacher of the current folder, which samples as it made the pairs."""
    if not TEACHER.is_dir() or not PAIRS.exists():
        missing = TEACHER if PAIRS.exists() else PAIRS if TEACHER.is_dir() else TEACHER.parent
        return ProjectTeacher(None, None, f"There is no {missing} here. Start kdm play in the "
                              "folder of the project that trained this student.")
    try:
        params = load_params()
        if isinstance(params.teacher, NoTeacher):
            return ProjectTeacher(None, None, "This project has pairs and no teacher.")
        spec = PairStore.open(PAIRS).spec
        model, mark, _ = load_sampled(TEACHER, spec.guidance, params.trusts_code, done=True)
        found = SampledTeacher(model.to(device), spec.known_solver, spec.precision)
        return ProjectTeacher(found, mark, "")
    except KDMError as error:  # the students are there to play with all the same
        return ProjectTeacher(None, None, f"It cannot be used: {error}")


def beside(name: str, student: Student, teacher: ProjectTeacher) -> Player:
    """A student with the teacher that it was distilled from, if this is it."""
    absent = teacher.absent
    if teacher.found is not None:
        if student.provenance.get("teacher") != teacher.fingerprint:
            absent = "The teacher of this folder is not the one that this student was distilled " \
                     "from."
        else:
            try:
                require_order(student.spec.label_names, teacher.found.model.spec.label_names,
                              name, str(TEACHER))
                return Player(name, student, teacher.found.precision, teacher.found, "")
            except KDMError as error:
                absent = str(error)
    return Player(name, student, "auto", None, absent)
