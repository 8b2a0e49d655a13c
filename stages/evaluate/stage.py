"""evaluate NAME: a student beside its teacher, on the same unseen noise and against real data."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdm_core.classes import match_classes
from kdm_core.datasets import Dataset, open_dataset
from kdm_core.datasets.base import DatasetInfo
from kdm_core.errors import MismatchError
from kdm_core.metrics.estimate import resampling
from kdm_core.pairs.reading.whole import Pairs
from kdm_core.samples import SampleSpec
from kdm_core.serialization import write_json
from kdm_core.students.seen import seen
from pipeline.runtime import paths
from pipeline.runtime.latents import learned_data
from pipeline.runtime.models import Models, open_models
from pipeline.runtime.runner import Stage
from pipeline.workers.engine import engine
from pipeline.workers.tasks import Engine
from stages.evaluate.frequencies import compare_labels
from stages.evaluate.measuring import (
    Samples,
    measure_images,
    measure_lpips,
    measure_pairs,
    measure_points,
    warn_of_flattery,
)
from stages.evaluate.results import Results
from stages.evaluate.speed import measure_speed

PICTURED = {"image": 64, "latent": 0, "points": 4000}
"""Samples that are kept for the report's pictures."""


def main(stage: Stage, name: str) -> None:
    # Of points no features are computed.
    images = open_dataset(paths.DATASET)[0].info.samples.kind != "points"
    with engine(stage, needed=images) as workers:
        evaluate(stage, name, workers)


def evaluate(stage: Stage, name: str, workers: Engine) -> None:
    """Measure everything, and write it down."""
    dataset, dataset_mark = open_dataset(paths.DATASET)
    models = open_models(stage, name)
    learned = open_dataset(learned_data(stage.params))[0].info.samples
    require_same_samples(learned, models.store.samples)
    test = as_in_data(models.test, models.store.samples, dataset.info)
    made = models.sample_student(test.noise, models.test.labels)
    config = stage.params.evaluation
    counts = resampling(len(made), config.bootstrap, stage.shared_seed("pairs"))
    samples = Samples(test, made, counts, models.pictures)
    results = Results({
        "n": len(made), "dataset": dataset_mark, "student": models.student_mark,
        "pairs": models.store.fingerprint, "device": str(stage.device),
        "precision": models.store.precision, "seed": stage.params.seed,
        "bootstrap": config.bootstrap,
    }, models.source, seen(models.student.provenance), dataset.info.real,
        dataset.info.real and models.pictures.autoencoder is not None)
    note_source(stage, results, models)
    # Before the work, so that the time of a run that does not come to its end counts.
    folder, _ = stage.work_folder(results.conditions, config.model_dump())
    measure_pairs(results, samples)
    shown = samples.shown
    measure_shown(stage, results, dataset, shown, workers)
    if dataset.info.real:
        compare_labels(stage, results, dataset, models)
    warn_of_flattery(stage, results)
    note_costs(stage, results, models)
    write_results(stage, name, folder / "result", results, models, shown)


def measure_shown(
    stage: Stage, results: Results, dataset: Dataset, samples: Samples, workers: Engine
) -> None:
    """What is measured of images, or of points; of latents that nothing decodes, nothing."""
    kind = samples.pictures.shown.kind
    if samples.pictures.autoencoder is not None:
        results.conditions["mse_of"] = "latents; all other figures are of decoded images"
    if kind == "image":
        measure_images(stage, results, dataset, samples, workers)
        measure_lpips(stage, results, samples)
    elif kind == "points":
        measure_points(stage, results, dataset, samples)
    else:
        results.absent.append("nothing makes pictures of these latents, so that all figures of "
                              "pictures are left out: name their decoder (autoencoder)")
        stage.say(results.absent[-1])


def note_source(stage: Stage, results: Results, models: Models) -> None:
    """Which teacher and data the student is measured beside, or why there are none."""
    if models.source == "teacher":
        results.conditions["teacher"] = models.teacher_mark
    elif models.teacher is None:
        results.absent.append(
            "there is no teacher (teacher.source: none), so the student is measured beside the "
            "pairs' samples: a teacher's evaluations, speed and size are left out")
    else:
        results.absent.append(
            "nobody wrote down which teacher made these pairs, so the student is measured beside "
            "their samples: a teacher's evaluations, speed and size are left out. `kdm pairs "
            "import --teacher DIR --solver KIND` checks a teacher and notes it")
    if not results.real_data:
        results.absent.append(
            "there are no data (data.source: none), so distances are to samples of the teacher "
            "that no student learned from, those of the validation pairs: how far the teacher "
            "itself is from the data nobody knows")


def require_same_samples(real: SampleSpec, made: SampleSpec) -> None:
    """Make sure that samples are of the data's kind, resolution and channels.

    Raises:
        MismatchError: they are not.
    """
    if (real.kind, real.shape) != (made.kind, made.shape):
        raise MismatchError(f"the data have {real.kind} samples of shape {real.shape}, "
                            f"{paths.PAIRS} {made.kind} samples of shape {made.shape}: run `dvc "
                            "repro` from prepare_data on")


def as_in_data(pairs: Pairs, made: SampleSpec, data: DatasetInfo) -> Pairs:
    """The pairs, their labels in the numbers that the data's classes have.

    Raises:
        MismatchError: the pairs have other classes.
    """
    if not made.num_classes or not data.class_names:
        return pairs
    order = match_classes(made.label_names, data.class_names, str(paths.DATASET), "the pairs")
    return pairs._replace(labels=torch.tensor(order, device=pairs.labels.device)[pairs.labels])


def note_costs(stage: Stage, results: Results, models: Models) -> None:
    """Evaluations, speed and size of both models, as far as both are known."""
    speeds = measure_speed(models, stage.params.evaluation.timing_images)
    for who, speed in speeds.items():
        model = models.student if who == "student" else models.known_teacher
        results.cost(who, "nfe", speed.nfe)
        results.cost(who, "images_per_s", speed.images_per_s)
        results.cost(who, "parameters", sum(p.numel() for p in model.parameters()))


def write_results(
    stage: Stage, name: str, result: Path, results: Results, models: Models, samples: Samples
) -> None:
    """What the report needs: figures with their conditions, some samples, the eigenvalues."""
    keep = PICTURED[samples.pictures.shown.kind]
    spectrum = models.student.eigenvalues()
    eigenvalues = torch.zeros(0, 2) if spectrum is None else torch.view_as_real(spectrum)
    result.mkdir(exist_ok=True)
    write_json(result / "evaluation.json", results.document())
    arrays: dict[str, Any] = {
        "noise": models.test.noise[:keep], models.source: samples.test.samples[:keep],
        "student": samples.made[:keep], "labels": models.test.labels[:keep],
        "eigenvalues": eigenvalues}
    np.savez(result / "samples.npz", **{key: value.numpy() for key, value in arrays.items()})
    stage.finish(result, paths.EVALUATION / name)
    stage.write_metrics(name, results.values())
    stage.write_timing()
    stage.say(", ".join(f"{key} {estimate.value:.4g}"
                        for key, estimate in results.figures["student"].items()))
    for who, verdict in results.verdicts().items():
        stage.say(f"{name if who == 'student' else who}: {verdict.word} ({'; '.join(verdict.why)})")
