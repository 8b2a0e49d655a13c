"""A training in phases, each of which starts where the one before ended, under one resume."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from kdm_core.config import Config
from kdm_core.errors import DivergedError, placed
from kdm_core.students.base import Student
from kdm_core.students.guard import problem
from kdm_core.students.objective import LossConfig
from kdm_core.students.training import StudentTask
from kdm_core.training.checkpoints import Record, store
from kdm_core.training.config import TrainingConfig
from kdm_core.training.distributed import is_main, same_weights
from kdm_core.training.loop import fit
from kdm_core.training.waiting import Waiting


class NextPhase(Config):
    """What comes after a student's first phase; what is None is as in the phase before.

    Attributes:
        steps, lr, warmup, schedule: as those of a training.
        batch, betas, clip, ema: likewise.
        losses: all of the objective.
    """

    steps: int = Field(ge=1)
    lr: float = Field(gt=0)
    warmup: int = Field(0, ge=0)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    batch: int | None = Field(None, ge=1)
    betas: list[Annotated[float, Field(ge=0, lt=1)]] | None = Field(
        None, min_length=2, max_length=2)
    clip: float | None = Field(None, ge=0)
    ema: float | None = Field(None, ge=0, lt=1)
    losses: LossConfig | None = None


class Phase(NamedTuple):
    """One phase as it is trained."""

    losses: LossConfig
    training: TrainingConfig


def phases(first: Phase, then: Sequence[NextPhase]) -> list[Phase]:
    """All phases, each with what it takes from the one before."""
    found = [first]
    for phase in then:
        given = {name: value for name, value in phase if value is not None and name != "losses"}
        found.append(Phase(phase.losses or found[-1].losses,
                           found[-1].training.model_copy(update=given)))
    return found


class Reports(NamedTuple):
    """Who is told how a training gets on; arguments as of `fit`, steps counted over all phases."""

    on_step: Callable[[int], None] = lambda step: None
    on_record: Callable[[Record], None] = lambda record: None
    on_checkpoint: Callable[[Student, int], None] = lambda student, step: None
    say: Callable[[str], None] = lambda message: None
    warn: Callable[[str], None] = lambda message: None
    on_start: Callable[[int], None] = lambda step: None


def fit_phases(
    student: Student, plan: Sequence[Phase], build: Callable[[Student, Phase, int], StudentTask],
    checkpoint: Path, work_key: str, reports: Reports, waiting: Waiting | None = None,
) -> tuple[Student, Record]:
    """Train a student through all phases, from where an earlier run was.

    Each phase starts at the averaged weights of the one before. Should one with a loss on the
    distribution collapse or diverge, its best weights by held-out noise are its result, which
    `reports.warn` says.

    Args:
        build: the task of a student, a phase and its number.
        checkpoint: the name of the first phase's files; those of the others lie beside it.
        work_key: of the whole training.

    Returns:
        The student, and the last point of the curves.

    Raises:
        DivergedError: a phase without such a loss diverged.
        DataError, MismatchError, KDMError: as `fit`.
    """
    done = 0
    for number, phase in enumerate(plan):
        name = checkpoint.with_stem(f"{checkpoint.stem}-{number}") if number else checkpoint
        key = f"{work_key}/{number}" if number else work_key
        with placed(f"then.{number - 1}" if number else "training"):
            task = build(student, phase, number)
            records = fit_phase(task, name, key, shifted(reports, task, done), waiting)
        done += phase.training.steps
        student = task.ema.shadow
        if number + 1 < len(plan):
            # A run that is killed later finds this phase complete.
            if is_main():
                store(task, name, key, phase.training.steps, records)
            same_weights(student)
            student = student.requires_grad_(True)
    return student, records[-1] | {"step": done}


def fit_phase(
    task: StudentTask, checkpoint: Path, work_key: str, reports: Reports, waiting: Waiting | None
) -> list[Record]:
    """As `fit`; of a phase that collapsed the best weights are the result."""
    guard = task.guard
    if guard is None:
        return fit(task, checkpoint, work_key, reports.on_step, reports.on_record,
                   lambda step: reports.on_checkpoint(task.ema.shadow, step), reports.say, waiting,
                   reports.on_start)
    records: list[Record] = [{"step": 0, **task.validate()}]

    def on_record(record: Record) -> None:
        records.append(record)
        reports.on_record(record)

    try:
        fit(task, checkpoint, work_key, reports.on_step, on_record,
            lambda step: reports.on_checkpoint(task.ema.shadow, step), reports.say, waiting,
            reports.on_start)
        found = problem(task.losses.adversary if task.losses.adversarial else None, records)
    except DivergedError as error:
        found = str(error)
    if found is not None:
        task.ema.shadow.load_state_dict(guard.best.state_dict())
        records.append({**records[-1], "step": task.config.steps, **task.validate()})
        reports.warn(f"the phase with a loss on the distribution went wrong: {found}. The "
                     "student is the one of this phase whose samples were nearest to real ones; "
                     "lower its weight or its rate, or give it fewer steps")
    return records[1:]


def shifted(reports: Reports, task: StudentTask, done: int) -> Reports:
    """Reports of a phase before which `done` steps were made."""
    return reports._replace(
        on_step=lambda step: reports.on_step(done + step),
        on_record=lambda record: reports.on_record(record | {"step": done + record["step"]}),
        on_checkpoint=lambda student, step: reports.on_checkpoint(student, done + step),
        on_start=lambda step: reports.on_start(done + step))
