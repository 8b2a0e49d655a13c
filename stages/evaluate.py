"""evaluate NAME: a student beside its teacher, on the same unseen noise and against real data."""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdm_core.datasets import Dataset, on_board, open_dataset
from kdm_core.losses.perceptual import LPIPS
from kdm_core.metrics.classifier import Classifier, Features, extract, load_classifier
from kdm_core.metrics.frechet import fit_gaussian, frechet_distance
from kdm_core.metrics.inception_score import inception_score
from kdm_core.metrics.paired import paired_lpips, paired_mse
from kdm_core.metrics.points import sliced_wasserstein
from kdm_core.pairs.reading import Pairs, read_split
from kdm_core.pairs.store import PairStore, StoreSpec
from kdm_core.serialization import read_json, write_json
from kdm_core.students.model import KDM, load_student
from kdm_core.teachers import Teacher, load_sampled
from kdm_core.values import as_float, from_uint8, to_uint8
from stages import paths
from stages.progress import Progress
from stages.runner import Stage, run

Figures = dict[str, float]


def main(stage: Stage, name: str) -> None:
    dataset, dataset_mark = open_dataset(paths.DATASET)
    student, student_mark = load_student(paths.STUDENTS / name)
    store = PairStore.open(paths.PAIRS)
    teacher, teacher_mark, _ = load_sampled(paths.TEACHER, store.spec.guidance,
                                            stage.params.trusts_code)
    teacher, student = teacher.to(stage.device), student.to(stage.device)
    test = read_split(store, "test", stage.device)
    made = sample_student(student, test, store.spec)
    figures: dict[str, Figures] = {
        "teacher": {"parameters": count_parameters(teacher)},
        "student": {"parameters": count_parameters(student), "nfe": 1},
    }
    mse = paired_mse(test.samples, made)
    figures["student"] |= {"mse": mse.matched, "mse_permuted": mse.permuted}
    conditions: dict[str, Any] = {
        "n": len(made), "dataset": dataset_mark, "teacher": teacher_mark, "student": student_mark,
        "pairs": store.spec.fingerprint, "device": str(stage.device),
        "precision": store.spec.precision,
        "reference": "train split", "reference_n": len(dataset.train_samples),
    }
    if store.spec.samples.kind == "image":
        compare_images(stage, name, dataset, test, made, figures, conditions)
    else:
        compare_points(stage, dataset, test, made, figures, conditions)
    time_sampling(stage, teacher, student, store, test, figures)
    write_results(stage, name, student, test, made, figures, conditions)


def sample_student(student: KDM, test: Pairs, spec: StoreSpec) -> Tensor:
    """The student's samples for the noise of all test pairs, at rest and back as images are."""
    parts = []
    for noise, labels in zip(torch.split(test.noise, spec.compute_batch),
                             torch.split(test.labels, spec.compute_batch), strict=True):
        given = labels if student.spec.num_classes else None
        parts.append(student.generate(noise, given, spec.precision))
    samples = torch.cat(parts)
    return from_uint8(to_uint8(samples)) if student.spec.kind == "image" else samples


def count_parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def compare_images(
    stage: Stage, name: str, dataset: Dataset, test: Pairs, made: Tensor,
    figures: dict[str, Figures], conditions: dict[str, Any],
) -> None:
    """Figures in the classifier's features, and LPIPS."""
    if stage.params.reference.classifier is not None:
        classifier, mark = load_classifier(paths.REFERENCE)
        conditions["classifier"] = mark
        reference = read_json(paths.REFERENCE / "reference.json")
        conditions["classifier_accuracy"] = reference["accuracy"]
        compare_features(classifier.to(stage.device), dataset, test, made, figures)
    n = min(stage.params.evaluation.lpips_pairs, len(made))
    if n:
        resolution = stage.params.evaluation.lpips_resolution
        lpips = LPIPS(resolution).to(stage.device)
        with Progress("LPIPS", n, "pair") as progress:
            distance = paired_lpips(lpips, test.samples[:n], made[:n], on_pairs=progress.update)
        figures["student"] |= {"lpips_vgg": distance.matched,
                               "lpips_vgg_permuted": distance.permuted}
        conditions |= {"lpips_n": n, "lpips_resolution": resolution}


def compare_features(
    classifier: Classifier, dataset: Dataset, test: Pairs, made: Tensor,
    figures: dict[str, Figures],
) -> None:
    """Fréchet distance to the real training images, score, and agreement of the classes."""
    real = extract(classifier, as_float(dataset.train_samples))
    reference = fit_gaussian(real.features)
    sets: dict[str, Features] = {
        "teacher": extract(classifier, test.samples), "student": extract(classifier, made),
    }
    for who, features in sets.items():
        figures[who] |= {
            "fd_classifier": frechet_distance(fit_gaussian(features.features), reference),
            "is_classifier": inception_score(features.probabilities),
        }
        if dataset.info.samples.num_classes:
            wanted = test.labels.cpu().numpy()
            hits = features.probabilities.argmax(1) == wanted
            figures[who]["label_accuracy"] = float(hits.mean())
    agreement = (sets["student"].probabilities.argmax(1)
                 == sets["teacher"].probabilities.argmax(1)).mean()
    figures["student"]["label_agreement"] = float(agreement)


def compare_points(
    stage: Stage, dataset: Dataset, test: Pairs, made: Tensor,
    figures: dict[str, Figures], conditions: dict[str, Any],
) -> None:
    """Share on the board, and sliced Wasserstein distance to real points of the test split."""
    real = np.asarray(dataset.test_samples)
    projections, seed = stage.params.evaluation.projections, stage.seed("projections")
    conditions |= {"reference": "test split", "reference_n": len(real), "projections": projections}
    for who, points in (("teacher", test.samples), ("student", made)):
        values = points.cpu().numpy()
        figures[who] |= {
            "on_support": float(on_board(values).mean()),
            "sliced_wasserstein": sliced_wasserstein(values, real, projections, seed),
        }


def time_sampling(
    stage: Stage, teacher: Teacher, student: KDM, store: PairStore, test: Pairs,
    figures: dict[str, Figures],
) -> None:
    """Images a second of both, side by side: same noise, batch, device and precision."""
    n = min(stage.params.evaluation.timing_images, len(test.noise))
    batch = min(n, store.spec.compute_batch)
    noise = test.noise[:batch]
    labels = test.labels[:batch] if student.spec.num_classes else None
    rounds = max(1, n // batch)

    def rate(sample: Callable[[], object]) -> float:
        sample()  # the first call allocates
        synchronise(stage.device)
        start = time.perf_counter()
        for _ in range(rounds):
            sample()
        synchronise(stage.device)
        return batch * rounds / (time.perf_counter() - start)

    solver, precision = store.spec.solver, store.spec.precision
    # Counted, since it is planned for fixed steps only.
    figures["teacher"]["nfe"] = teacher.sample(noise, labels, solver, precision).nfe
    figures["teacher"]["images_per_s"] = rate(
        lambda: teacher.sample(noise, labels, solver, precision))
    figures["student"]["images_per_s"] = rate(lambda: student.generate(noise, labels, precision))


def synchronise(device: torch.device) -> None:
    """Wait for work that a device does in the background."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def write_results(
    stage: Stage, name: str, student: KDM, test: Pairs, made: Tensor,
    figures: dict[str, Figures], conditions: dict[str, Any],
) -> None:
    """What the report needs: figures with their conditions, some samples, the eigenvalues."""
    keep = 4000 if student.spec.kind == "points" else 64
    eigenvalues = student.operator.eigenvalues()
    folder, _ = stage.work_folder(conditions)
    result = folder / "result"
    result.mkdir(exist_ok=True)
    write_json(result / "evaluation.json", {**figures, "conditions": conditions})
    np.savez(result / "samples.npz",
             noise=test.noise[:keep].cpu().numpy(), teacher=test.samples[:keep].cpu().numpy(),
             student=made[:keep].cpu().numpy(), labels=test.labels[:keep].cpu().numpy(),
             eigenvalues=torch.view_as_real(eigenvalues).numpy())
    stage.finish(result, paths.EVALUATION / name)
    write_json(paths.METRICS / "evaluate" / f"{name}.json", figures)
    stage.write_timing()
    shown = ", ".join(f"{key} {value:.4g}" for key, value in figures["student"].items())
    stage.say(shown)


if __name__ == "__main__":
    run(f"evaluate@{sys.argv[1]}", lambda stage: main(stage, sys.argv[1]))
