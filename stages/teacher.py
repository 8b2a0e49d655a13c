"""teacher: the model that is distilled, trained here or imported, as safetensors and JSON."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdm_core.compute import seeded
from kdm_core.datasets import Dataset, open_dataset
from kdm_core.errors import placed
from kdm_core.importers import ForeignSource, import_guide, import_teacher
from kdm_core.importers.files import fetch
from kdm_core.metrics.denoising.check import check_denoising
from kdm_core.metrics.denoising.record import DenoisingCheck
from kdm_core.serialization import file_sha256, write_json
from kdm_core.teachers import GUIDE, Teacher, TrainableConfig, build_teacher, save_teacher
from kdm_core.teachers.exact import fit_data, fit_mixture
from kdm_core.teachers.training import TeacherTask
from kdm_core.training.config import TrainingConfig
from kdm_core.training.loop import Record, fit
from kdm_core.values import as_float
from pipeline.params.fitting import check_against
from pipeline.params.teacher import ExactTeacher, NoTeacher, TrainedTeacher
from pipeline.runtime import paths
from pipeline.runtime.curves import Curves
from pipeline.runtime.latents import learned_data
from pipeline.runtime.progress import Progress
from pipeline.runtime.runner import Stage, run


def main(stage: Stage) -> None:
    dataset, mark = open_dataset(learned_data(stage.params))
    spec = dataset.info.samples
    check_against(stage.params, spec)
    config = stage.params.teacher
    if isinstance(config, NoTeacher):
        leave_out(stage)
        return
    folder, key = stage.work_folder(mark, config.model_dump(), stage.device.type)
    if isinstance(config, TrainedTeacher):
        teacher, guide, figures = train_both(stage, config, dataset, folder, key)
    else:
        without_curves()
        figures = {}
        if isinstance(config, ExactTeacher):
            teacher, guide = fit_exact(config, dataset), None
        else:
            with placed("teacher"):
                teacher, guide = import_teacher(config, spec), import_guide(config, spec)
            say_sums(stage, config)
    result = folder / "result"
    shutil.rmtree(result, ignore_errors=True)
    fingerprint = save_teacher(result, teacher)
    if guide is not None:
        save_teacher(result / GUIDE, guide)
    found = check(stage, teacher, dataset)
    if found is not None:
        figures["check"] = found.model_dump()
    stage.finish(result, paths.TEACHER)
    parameters = sum(p.numel() for p in teacher.parameters())
    write_json(paths.DETAILS / "teacher.json", {**figures, "parameters": parameters})
    stage.write_metrics("teacher", {"denoising": None if found is None else found.share})
    stage.write_timing()
    stage.say(f"teacher {fingerprint[:12]}, {parameters:,} parameters")


def leave_out(stage: Stage) -> None:
    """A result that says so: DVC expects its folder, and later stages look at the parameters."""
    folder, _ = stage.work_folder(stage.params.teacher.model_dump())
    write_json(folder / "result" / "none.json", {"teacher": None})
    stage.finish(folder / "result", paths.TEACHER)
    without_curves()
    write_json(paths.DETAILS / "teacher.json", {})
    stage.write_metrics("teacher", {})
    stage.write_timing()
    stage.say("there is no teacher (teacher.source: none): students learn from its pairs alone")


def without_curves() -> None:
    """There are none of what is not trained here, but DVC expects their folder."""
    shutil.rmtree(paths.CURVES / "teacher", ignore_errors=True)
    (paths.CURVES / "teacher").mkdir(parents=True)


def check(stage: Stage, teacher: Teacher, dataset: Dataset) -> DenoisingCheck | None:
    """Whether the teacher denoises these data as it should, said and for the report; None where
    nobody can tell."""
    guidance = getattr(stage.params.pairs, "guidance", None)
    found = check_denoising(teacher.to(stage.device).eval(), dataset, stage.seed("check"),
                            unlabelled=guidance is not None and guidance.kind == "classifier_free")
    if found is None:
        stage.note("too few held-out samples to check the teacher with; raise data.test_fraction")
        return None
    stage.say(str(found))
    for warning in found.warnings():
        stage.warn(warning)
    return found


def train_both(
    stage: Stage, config: TrainedTeacher, dataset: Dataset, folder: Path, key: str
) -> tuple[Teacher, Teacher | None, dict[str, Any]]:
    """The teacher, its guide if it has one, and figures of the training."""
    curves = Curves("teacher")
    with placed("teacher.training"):
        teacher, loss = train(stage, "teacher", config, config.model, config.training, dataset,
                              folder, key, curves)
    curves.end()
    if config.guide is None:
        return teacher, None, {"loss": loss}
    with placed("teacher.guide.training"):
        guide, guide_loss = train(stage, "guide", config, config.guide.model,
                                  config.guide.training, dataset, folder, key)
    return teacher, guide, {"loss": loss, "guide_loss": guide_loss}


def train(
    stage: Stage, name: str, config: TrainedTeacher, model: TrainableConfig,
    training: TrainingConfig, dataset: Dataset, folder: Path, key: str,
    curves: Curves | None = None,
) -> tuple[Teacher, float]:
    """Train a model on the data; returns its averaged weights and the last loss."""
    # The guide draws its own numbers; a teacher's do not depend on whether it has one.
    purpose = "" if name == "teacher" else f"{name}/"
    with seeded(stage.seed(f"{purpose}weights")):
        teacher = build_teacher(model, dataset.info.samples).to(stage.device)
    stage.say(f"{name}: {model.kind}, {model.network.kind} of "
              f"{sum(p.numel() for p in teacher.parameters()):,} parameters on {stage.device}")
    samples, labels = training_set(dataset, stage.device)
    task = TeacherTask(teacher, training, samples, labels, stage.seed(f"{purpose}training"),
                       label_dropout=config.label_dropout, augmentation=config.augmentation)
    with Progress(name, training.steps, "step") as progress:

        def on_record(record: Record) -> None:
            progress.note = f"loss {record['loss']:.4f}"
            if curves is not None:
                curves(record)

        records = fit(task, folder / f"{name}.safetensors", key, progress.reach, on_record,
                      on_start=progress.resume)
    averaged: Teacher = task.ema.shadow
    averaged.label_dropout = config.label_dropout
    return averaged, records[-1]["loss"]


def say_sums(stage: Stage, source: ForeignSource) -> None:
    """Say the checksums of files that are not pinned: DVC does not watch them."""
    for name, weights in (("teacher", source), ("teacher.guide", getattr(source, "guide", None))):
        file = getattr(weights, "file", None)
        if file and not getattr(weights, "sha256", None):
            stage.say(f"to notice when {file} changes, pin it: {name}.sha256: "
                      f"{file_sha256(fetch(file, None))}")


def fit_exact(config: ExactTeacher, dataset: Dataset) -> Teacher:
    """The closed form of the training data; with labels, of each class."""
    samples, labels = training_set(dataset, torch.device("cpu"))
    if config.kind == "gaussian_mixture":
        return fit_mixture(dataset.info.samples, samples, labels)
    return fit_data(dataset.info.samples, samples, labels)


def training_set(dataset: Dataset, device: torch.device) -> tuple[Tensor, Tensor]:
    """Samples (n, *shape) float32 and labels (n,) int64."""
    return (as_float(dataset.train_samples).to(device),
            torch.from_numpy(np.array(dataset.train_labels)).to(device))


if __name__ == "__main__":
    run("teacher", main)
