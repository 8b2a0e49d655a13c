"""train_student NAME: distils the pairs into the student that params.yaml calls NAME."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdm_core.classes import match_classes
from kdm_core.compute import is_worker, seeded
from kdm_core.datasets import Dataset, open_dataset
from kdm_core.errors import MismatchError, naming, placed
from kdm_core.figures.files import comparison, render
from kdm_core.losses.features import Frozen
from kdm_core.metrics.classifier import Classifier, load_classifier
from kdm_core.pairs.keep import KeepMask
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import PairStore
from kdm_core.samples import SampleSpec
from kdm_core.serialization import CONFIG, read_json, read_model, write_json
from kdm_core.sharing.folder import save_student
from kdm_core.sharing.hub import from_pretrained
from kdm_core.students.base import Student
from kdm_core.students.distil import Distillation, Reading
from kdm_core.students.given import Given, RealSamples
from kdm_core.students.initialise import start_at_student, start_at_teacher
from kdm_core.students.phases import Phase, Reports
from kdm_core.students.seen import recorded_phases
from kdm_core.teachers import Teacher, load_teacher
from kdm_core.training.distributed import (
    check_batch,
    check_devices,
    is_main,
    one_failure,
    process_group,
    world_size,
)
from kdm_core.training.launcher import launch
from kdm_core.training.loop import Record
from kdm_core.training.meeting import Machines
from pipeline.params.execution import TorchrunTraining
from pipeline.params.fitting import check_against
from pipeline.params.student import StudentParams
from pipeline.runtime import paths
from pipeline.runtime.curves import Curves
from pipeline.runtime.latents import Pictures, learned_data
from pipeline.runtime.progress import Progress
from pipeline.runtime.runner import Stage, run

PROGRAM = "stages.train_student"
PREFIX = "kdm-"
PICTURE_EVERY_S = 20.0
PLACES = {"device": "compute.device", "processes": "execution.training.nproc_per_node"}


def main(stage: Stage, name: str) -> None:
    engine = stage.params.execution.training
    if (isinstance(engine, TorchrunTraining) and not is_worker()
            and (engine.nodes != (1, 1) or processes(stage, engine) > 1)):
        start(stage, name, engine)
        return
    with process_group(stage.device) as stage.device:
        if is_worker():
            require_same_training(stage, name)
        distil(stage, name)


def processes(stage: Stage, engine: TorchrunTraining) -> int:
    """How many are to train on this machine."""
    every_gpu = stage.device.type == "cuda" and stage.device.index is None
    return engine.nproc_per_node or (torch.cuda.device_count() if every_gpu else 1)


def start(stage: Stage, name: str, engine: TorchrunTraining) -> None:
    """Have this stage done by processes, here and on the machines on which a person starts some.

    Raises:
        KDMError: they cannot work as params.yaml says; nothing has been started.
    """
    count, (least, most) = processes(stage, engine), engine.nodes
    config = stage.params.students[name].training
    with naming(PLACES.__getitem__):
        check_devices(stage.device, count)
    with placed(f"students.{name}.training"):
        check_batch(config.batch, config.accumulate,
                    *(machines * count for machines in range(least, most + 1)))
    meeting = None
    if engine.rdzv_endpoint is not None and most > 1:
        meeting = Machines(least, most, engine.rdzv_endpoint, identity(stage, name),
                           engine.patience_s)
    with placed("execution.training"):
        code = launch(PROGRAM, [name], count, engine.max_restarts, meeting, stage.say)
    if code:
        sys.exit(code)


def identity(stage: Stage, name: str) -> str:
    """The same wherever this student is trained with the same parameters, code and torch."""
    student = stage.params.students[name].model_dump()
    return f"{PREFIX}{stage.key(stage.params.seed, student, torch.__version__)[:16]}"


def require_same_training(stage: Stage, name: str) -> None:
    """Make sure that this process has the parameters and the code of the one that started it all.

    Raises:
        MismatchError: it has not.
    """
    started = os.environ["TORCHELASTIC_RUN_ID"]
    if started.startswith(PREFIX) and started != identity(stage, name):
        raise MismatchError("this machine has other parameters of this student, other code or "
                            "another torch than the one that started the training: work in the "
                            "same folder, with the same environment")


def distil(stage: Stage, name: str) -> None:
    config = stage.params.students[name]
    plan = config.phases
    mask = KeepMask.load(paths.KEEP)
    store = PairStore.open(paths.PAIRS).masked(mask)
    spec = store.spec
    check_against(stage.params, spec.samples)
    with placed(f"students.{name}.model"):
        model = config.model.completed(teacher_of(stage, spec))
    with seeded(stage.seed("weights")):
        student = model.build(spec.samples)
    start, earlier = initialise(stage, student, config, spec)
    given, marks = given_to(stage, plan, spec.samples)
    folder, key = stage.work_folder(spec.fingerprint, sha256(mask.reasons.tobytes()).hexdigest(),
                                    config.model_dump(), start, marks, stage.device.type)
    if is_main():
        parameters = sum(p.numel() for p in student.parameters())
        stage.say(f"{model.describe()}, {parameters:,} parameters, "
                  f"on {world_size()} × {stage.device.type}")
    with placed(f"students.{name}"):
        training = Distillation(
            store, plan, stage.device,
            lambda number: stage.seed(f"training, phase {number}" if number else "training"),
            given, config.shuffle_buffer, reading(name))
        stored = len(spec.split_range("train"))
        if is_main() and training.count < stored:
            stage.say(f"reads {training.count:,} of {stored:,} pairs")
        best, last = train(stage, training, name, student.to(stage.device),
                           folder / "checkpoint.safetensors", key)
    if not is_main():
        return
    best.attach(Pictures(stage.params, spec.samples, stage.device).autoencoder)
    fingerprint = save_student(folder / "result", best,
                               training.provenance({**start, **marks}, earlier))
    stage.finish(folder / "result", paths.STUDENTS / name)
    write_json(paths.DETAILS / f"train_student@{name}.json",
               {key: value for key, value in last.items() if key != "step"})
    stage.write_timing(processes=world_size(), waiting_share=round(training.waiting.share, 4))
    stage.say(f"student {fingerprint[:12]}")


def given_to(stage: Stage, plan: list[Phase], spec: SampleSpec) -> tuple[Given, dict[str, str]]:
    """What the losses of all phases ask of the run, and the fingerprints of what they may use."""
    marks: dict[str, str] = {}
    real = None
    if any(phase.losses.takes_data for phase in plan):
        dataset, marks["data"] = open_dataset(learned_data(stage.params))
        real = real_samples(dataset, spec, stage.device)

    def teacher() -> Teacher:
        with placed("teacher"):
            return load_teacher(paths.TEACHER, stage.params.trusts_code)[0].to(stage.device)

    def classifier() -> Classifier:
        return load_classifier(paths.REFERENCE)[0].to(stage.device)

    asked = {kind for phase in plan for kind in phase.losses.asked_networks}
    if "teacher" in asked:
        marks["teacher_seen"] = read_model(paths.TEACHER)[2]
    if "classifier" in asked:
        marks["classifier_seen"] = read_model(paths.REFERENCE)[2]
    return Given(real, Frozen(teacher, classifier)), marks


def real_samples(dataset: Dataset, spec: SampleSpec, device: torch.device) -> RealSamples:
    """The training samples, with the labels that the student has.

    Raises:
        MismatchError: they are no such samples, or have not the student's classes.
        DataError: a class has none.
    """
    info = dataset.info
    if (info.samples.kind, info.samples.shape) != (spec.kind, spec.shape):
        raise MismatchError(f"losses: real: data: the data have {info.samples.kind} samples "
                            f"of shape {info.samples.shape}, the pairs {spec.kind} samples of "
                            f"shape {spec.shape}; use real: pairs, or the data of the pairs")
    labels = None
    if spec.num_classes:
        order = match_classes(spec.label_names, info.class_names, str(paths.DATASET), "the pairs")
        own = np.full(len(info.class_names), -1)
        own[order] = np.arange(len(order))
        labels = torch.from_numpy(own[np.asarray(dataset.train_labels)]).to(device)
    samples = torch.from_numpy(np.array(dataset.train_samples)).to(device)
    return RealSamples(samples, labels, spec.num_classes)


def reading(name: str) -> Reading:
    """Shows how reading the pairs into memory gets on."""
    @contextmanager
    def shown(pairs: int) -> Iterator[Callable[[int], None]]:
        with Progress(f"{name}, pairs", pairs, "pair") as progress:
            yield progress.update if is_main() else lambda pairs: None

    return shown


def teacher_of(stage: Stage, spec: StoreSpec) -> dict[str, Any] | None:
    """The configuration of the teacher that made the pairs; None where it is not at hand or nobody
    knows which did."""
    if stage.params.source(spec) == "pairs":
        return None
    config: dict[str, Any] = read_json(paths.TEACHER / CONFIG)["teacher"]
    return config


def initialise(
    stage: Stage, student: Student, config: StudentParams, spec: StoreSpec
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Give the student the weights that it starts with.

    Returns:
        The fingerprint of their origin, and the phases that a student there had: what its losses
        saw, this one has seen.
    """
    if config.init == "random":
        return {}, []
    if config.init == "auto" and stage.params.source(spec) == "pairs":
        if is_main():
            stage.say("starts at random weights, since nobody knows the teacher of these pairs "
                      "or it is not here")
        return {}, []
    if config.init in ("auto", "teacher"):
        try:
            taken, mark = start_at_teacher(student, paths.TEACHER)
        except MismatchError as error:
            if config.init == "teacher":
                raise
            if is_main():
                stage.say(f"starts at random weights, since the teacher's do not fit ({error})")
            return {}, []
        if is_main():
            stage.say(f"starts at the teacher's weights: {taken:,} parameters")
        return {"init": mark}, []
    other = from_pretrained(config.init)
    return ({"init": start_at_student(student, other, config.init)},
            recorded_phases(other.provenance))


def train(
    stage: Stage, training: Distillation, name: str, student: Student, checkpoint: Path, key: str
) -> tuple[Student, Record]:
    """Run all phases with progress, curves and, now and then, a grid of held-out samples.

    Returns:
        The student, and the last point of the curves.
    """
    if not is_main():
        return training.run(student, checkpoint, key, Reports())
    curves = Curves(name)
    last = sum(phase.training.steps for phase in training.plan)
    noise, samples, labels = (part[:64] for part in training.validation[:3])
    pictures = Pictures(stage.params, student.spec, stage.device)
    given, shown = pictures(samples.cpu()), time.monotonic()

    def show_samples(best: Student, step: int) -> None:
        nonlocal shown
        if step < last and time.monotonic() - shown < PICTURE_EVERY_S:
            return
        if pictures.shown.kind == "latent":
            return
        shown = time.monotonic()
        made = best.generate(noise, best.spec.told(labels), training.plan[0].training.precision)
        curves.picture("samples.png", render(comparison(
            pictures.shown, given, pictures(made.cpu()),
            stage.params.source(training.store.spec))))

    with Progress(name, last, "step") as progress:

        def on_start(step: int) -> None:
            if step > progress.done or not step:
                progress.resume(step)

        def on_record(record: Record) -> None:
            progress.note = f"held-out MSE {record['validation_mse_ratio']:.3f} of permuted"
            curves(record)

        best, record = training.run(student, checkpoint, key, Reports(
            progress.reach, on_record, show_samples, stage.say, stage.note, on_start))
    show_samples(best, last)
    curves.end()
    return best, record


if __name__ == "__main__":
    name = sys.argv[1]
    relief = (f"raise students.{name}.training.accumulate, or make its batch or its model smaller, "
              "in params.yaml")
    with one_failure():
        run(f"train_student@{name}", lambda stage: main(stage, name), relief)
