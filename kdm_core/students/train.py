"""From pairs to a student in one call."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from kdm_core.compute import hashed_seed, resolve_device, seeded
from kdm_core.errors import DataError, KDMError, adapted, placed
from kdm_core.pairs.store import PairStore
from kdm_core.serialization import CONFIG, fingerprint, read_json
from kdm_core.students import StudentConfig, with_kind
from kdm_core.students.base import Student
from kdm_core.students.defaults import default_losses, default_student, default_training
from kdm_core.students.distil import Distillation
from kdm_core.students.given import NOTHING, Given
from kdm_core.students.initialise import start_at_teacher
from kdm_core.students.phases import NextPhase, Phase, Reports, phases
from kdm_core.training.distributed import is_main, process_group
from kdm_core.training.loop import Record
from kdm_core.training.progress import Progress

C = TypeVar("C")
Fields = Mapping[str, Any]


def train(
    pairs: PairStore,
    model: StudentConfig | Fields | None = None,
    steps: int | None = None,
    *,
    losses: Fields | None = None,
    training: Fields | None = None,
    then: Sequence[NextPhase] = (),
    teacher: Path | str | None = None,
    given: Given = NOTHING,
    window: int | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: Path | str | None = None,
    reports: Reports | None = None,
) -> Student:
    """Distil pairs into a student; what is left out is chosen by what the pairs are.

    The same arguments give the same student, bit for bit on a CPU with the same number of threads,
    also where `resume` goes on with a run that was killed.

    Args:
        pairs: read through their mask; some of them are for validation.
        model: the student, as a configuration or its fields: `{"kind": "direct", …}`.
        steps: of the first phase.
        losses, training: fields of `LossConfig` and `TrainingConfig` that are to be otherwise than
            by default, which is the regression on pairs alone.
        then: further phases.
        teacher: a teacher's folder. The student starts at its weights, and takes its network where
            the model leaves that to it. Otherwise weights start at random.
        given: what losses ask for besides pairs: samples of the data, frozen networks.
        window: pairs that are mixed at a time, read in the background; None keeps all of them on
            the device.
        seed: decides all that is random.
        device: `auto` is the best there is; or `cpu`, `cuda`, `cuda:1`, `mps`.
        resume: a folder for the state of the run; another call goes on from what is there of the
            same arguments. None keeps nothing.
        reports: who is told how it gets on; None prints it, and `Reports()` tells nobody.

    Returns:
        The student in eval mode, on the device, with a record of what it was distilled from.

    Raises:
        KDMError, DataError: an argument makes no sense, or pairs are missing or damaged.
        MismatchError: the model and the pairs, or the teacher's weights, do not fit together.
        DivergedError: the training diverged.
    """
    with process_group(resolve_device(device)) as own_device, ExitStack() as opened:
        samples = pairs.spec.samples
        config = chosen_model(pairs, model, teacher)
        plan = phases(first_phase(pairs, config, steps, losses, training), then)
        for number, phase in enumerate(plan):
            try:
                config.check(phase.losses)
            except ValueError as error:
                raise KDMError(str(error), field=f"then.{number - 1}" if number else None
                               ) from error
        with placed("model"), seeded(hashed_seed(seed)):
            student = config.build(samples)
        start = {} if teacher is None else {"init": start_at_teacher(student, Path(teacher))[1]}
        distillation = Distillation(pairs, plan, own_device, lambda phase: hashed_seed(seed, phase),
                                    given, window)
        mask = pairs.mask and sha256(pairs.mask.reasons.tobytes()).hexdigest()
        key = fingerprint({"record": distillation.provenance(start), "mask": mask,
                           "model": config.model_dump(), "seed": seed, "window": window,
                           "device": own_device.type})
        folder = Path(resume if resume is not None
                      else opened.enter_context(tempfile.TemporaryDirectory()))
        best, _ = distillation.run(student.to(own_device), folder / "checkpoint.safetensors", key,
                                   told(plan, reports) if is_main() else Reports())
        best.provenance = distillation.provenance(start)
    return best


def chosen_model(
    pairs: PairStore, model: StudentConfig | Fields | None, teacher: Path | str | None
) -> StudentConfig:
    """The student's configuration, with what it leaves to a teacher."""
    if model is None:
        return default_student(pairs.spec.samples)
    config: StudentConfig = (parsed(StudentConfig, with_kind(dict(model)), "model")
                             if isinstance(model, Mapping) else model)
    known = None if teacher is None else read_json(Path(teacher) / CONFIG).get("teacher")
    with placed("model"):
        return config.completed(known)


def first_phase(
    pairs: PairStore, model: StudentConfig, steps: int | None, losses: Fields | None,
    training: Fields | None,
) -> Phase:
    """The defaults, and what was said otherwise."""
    count = len(pairs.kept_rows("train"))
    if not count:
        raise DataError(f"{pairs.location} has no pairs to train on, or none that its filter keeps")
    usual = default_losses(model, pairs.spec.samples), default_training(count, steps)
    return Phase(*(parsed(type(config), {**config.model_dump(), **(otherwise or {})}, place)
                   for config, otherwise, place in zip(
                       usual, (losses, training), ("losses", "training"), strict=True)))


def parsed(kind: Any, content: Fields, place: str) -> Any:
    """A configuration.

    Raises:
        KDMError: it is none; all fields that are wrong are named.
    """
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        raise KDMError("; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
            for problem in error.errors(include_url=False)), field=place) from error


def told(plan: Sequence[Phase], reports: Reports | None) -> Reports:
    """Who is told, where that is left open: a person."""
    if reports is not None:
        return reports
    progress = Progress(sum(phase.training.steps for phase in plan))

    def on_record(record: Record) -> None:
        progress.note(f"held-out MSE {record['validation_mse_ratio']:.3f} of permuted")

    return Reports(progress.reach, on_record, say=adapted, warn=adapted, on_start=progress.start)
