"""Quality against network evaluations: the student in several steps beside its teacher in few."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from pydantic import Field, field_validator
from torch import Tensor

from kdm_core.config import Config
from kdm_core.figures.steps import Curve, quality_and_fidelity
from kdm_core.metrics.estimate import resampling
from kdm_core.metrics.frechet import factor, fit_gaussian, frechet_distance
from kdm_core.metrics.points import sliced_wasserstein
from kdm_core.studies.base import Finding, Inapplicable, Subject, mean_square
from kdm_core.values import as_float

PROJECTIONS = 128
"""Directions of the sliced distance."""


class StepsConfig(Config):
    """How far both models are pushed.

    Attributes:
        teacher_steps: of the teacher's own solver, growing. The student takes as many steps as
            that is evaluations: 1, 3 and 7 beside Heun's method in 1, 2 and 4 steps.
        most: noises that are sampled, and held-out samples that they are compared with.
    """

    teacher_steps: list[int] = [1, 2, 4]
    most: int = Field(5000, ge=2)

    @field_validator("teacher_steps")
    @classmethod
    def _growing(cls, steps: list[int]) -> list[int]:
        if not steps or steps[0] < 1 or (np.diff(steps) <= 0).any():
            raise ValueError("teacher_steps: they are 1 or more and grow, such as [1, 2, 4]")
        return steps


class Quality(NamedTuple):
    """How far sets of samples are from held-out data.

    Attributes:
        key: in the numbers.
        name: in words.
        of: the distance of samples (n, *shape).
        dim: dimensions of what is compared.
    """

    key: str
    name: str
    of: Callable[[Tensor], float]
    dim: int


class Curves(NamedTuple):
    """Both models over evaluations, and the distance of the stored samples."""

    teacher: Curve
    student: Curve
    stored: float


def steps(subject: Subject, config: StepsConfig) -> Finding:
    """Distances to held-out data, and to the stored samples, at several numbers of evaluations.

    Raises:
        Inapplicable: the teacher's solver chooses its steps, there is too little to compare, or
            images have no features.
    """
    n = min(config.most, len(subject.noise))
    quality = measure_of(subject, config.most)
    if n < 2:
        raise Inapplicable("a distance takes two unseen noises, and there is one", field="")
    found = measure(subject, config.teacher_steps, n, quality)
    held_out = min(config.most, len(subject.held_out_samples))
    return Finding(
        name="steps", title="Quality against network evaluations",
        figure=quality_and_fidelity(found.teacher, found.student, found.stored, quality.name,
                                    subject.name),
        alt=f"Two curves each of the teacher and of {subject.name} over the number of network "
            f"evaluations, on a logarithmic axis: at the left the {quality.name} to held-out "
            "data, at the right the mean squared error to the stored samples of the same noise.",
        caption=caption(subject, found, quality, n, held_out),
        numbers={"n": n, "held_out": held_out, "dim": quality.dim,
                 "teacher_steps": config.teacher_steps,
                 **{f"{who}_{key}": values for who, curve in
                    (("teacher", found.teacher), ("student", found.student))
                    for key, values in (("nfe", curve.nfe), (quality.key, curve.distance),
                                        ("mse", curve.mse))},
                 f"stored_{quality.key}": found.stored})


def measure_of(subject: Subject, most: int) -> Quality:
    """How samples of this kind are compared with held-out ones.

    Raises:
        Inapplicable: there is nothing to compare with, or nothing to compare in.
    """
    real = subject.held_out_samples[:most]
    if len(real) < 2:
        raise Inapplicable(f"a distance takes two held-out samples, and there are {len(real)}",
                           field="")
    if subject.spec.kind == "points":
        points = np.asarray(real)

        def sliced(samples: Tensor) -> float:
            counts = resampling(len(samples), 0, subject.seed)
            return sliced_wasserstein(samples.numpy(), points, PROJECTIONS, subject.seed,
                                      counts).value

        return Quality("sliced_wasserstein", "sliced Wasserstein distance", sliced, points.shape[1])
    features = subject.features
    if features is None:
        raise Inapplicable("images are compared by their features, and there is no extractor",
                           field="")
    reference = fit_gaussian(features(as_float(real)))
    root = factor(reference.covariance)
    return Quality("fd", "Fréchet distance", dim=reference.mean.size, of=lambda samples:
                   frechet_distance(fit_gaussian(features(samples)), reference, root))


def measure(subject: Subject, teacher_steps: list[int], n: int, quality: Quality) -> Curves:
    """Both curves, of the first n noises. The student's begins at one evaluation.

    Raises:
        Inapplicable: the teacher's solver chooses its steps.
    """
    solve, sample = subject.sample_teacher_steps, subject.sample_steps
    assert sample is not None
    if solve is None:
        raise Inapplicable("the teacher’s solver chooses its steps itself, so that it has no "
                           "results of fewer", field="")
    noise, labels, stored = subject.noise[:n], subject.labels[:n], subject.teacher[:n]

    def judged(made: Iterator[tuple[int, Tensor]]) -> Curve:
        rows = [(nfe, quality.of(samples), mean_square(samples.numpy(), stored.numpy()))
                for nfe, samples in made]
        nfe, distance, mse = (list(column) for column in zip(*rows, strict=True))
        return Curve(nfe, distance, mse)

    solved = (solve(noise, labels, count) for count in teacher_steps)
    teacher = judged((one.nfe, one.state) for one in solved)
    student = judged((nfe, subject.student[:n] if nfe == 1 else sample(noise, labels, nfe))
                     for nfe in sorted({1, *teacher.nfe}))
    return Curves(teacher, student, quality.of(stored))


def caption(subject: Subject, found: Curves, quality: Quality, n: int, held_out: int) -> str:
    """What to look at, and what the numbers say."""
    name, student = subject.name, found.student
    best = int(np.argmin(student.distance))
    if len(student.nfe) == 1:
        gain = f"{name} was asked for one evaluation only"
    elif best == 0:
        gain = f"more evaluations do not bring {name} nearer to real data than one does"
    else:
        gain = (f"{name} is nearest with {student.nfe[best]} evaluations, at "
                f"{student.distance[best] / student.distance[0]:.2f} times its distance with one")
    few = min(n, held_out)
    remark = "" if few > quality.dim else (
        f" {few:,} samples are no more than the {quality.dim:,} dimensions of the features: the "
        "distances mostly show that, and are not reliable.")
    return (
        f"Left, the {quality.name} to {held_out:,} held-out samples; right, the mean squared error "
        f"to the stored samples of the same {n:,} noises. Lower is better in both. The teacher is "
        f"solved again in fewer steps, and {name} takes a step for each evaluation. "
        f"Distances of the teacher: {listed(found.teacher.nfe, found.teacher.distance)}; of "
        f"{name}: {listed(student.nfe, student.distance)}; of the stored samples, made with all "
        f"steps: {found.stored:.3g} (dotted). Errors of {name}: "
        f"{listed(student.nfe, student.mse)}. By these distances {gain}; "
        f"{overtaken(found, name)}.{remark}")


def listed(nfe: list[int], values: list[float]) -> str:
    """Numbers with the evaluations that they took: "3.2 with 1, 1.5 with 3"."""
    return ", ".join(f"{value:.3g} with {count}" for count, value in zip(nfe, values, strict=True))


def overtaken(found: Curves, name: str) -> str:
    """With how many evaluations the teacher is as near to real data as the student with one."""
    one = found.student.distance[0]
    enough = [nfe for nfe, distance in zip(found.teacher.nfe, found.teacher.distance, strict=True)
              if distance <= one]
    if not enough:
        return (f"with up to {found.teacher.nfe[-1]} evaluations the teacher is not as near as "
                f"{name} with one")
    return f"the teacher takes {enough[0]} to be as near as {name} with one"
