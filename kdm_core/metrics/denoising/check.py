"""Comparing a teacher with the best linear denoiser, and its answers to right and wrong labels."""

from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdm_core.compute import state_dtype
from kdm_core.datasets.base import Dataset
from kdm_core.errors import DivergedError
from kdm_core.metrics.denoising.record import (
    ORDER,
    SHARE,
    Bounds,
    DenoisingCheck,
    LabelCheck,
    LevelCheck,
)
from kdm_core.metrics.denoising.wiener import Wiener, even_rows, fit_wiener
from kdm_core.metrics.estimate import Counts, mean_estimate, resampling
from kdm_core.noise import draw
from kdm_core.teachers.base import Teacher
from kdm_core.values import as_float

LEVELS = (0.2, 0.6, 1.7, 5.0)  # noise levels in sigma_data, even in their logarithm
SAMPLES = 256
LEAST = 20  # samples of which an interval says something
REPLICATES = 1000
BATCH = 64


class Batch(NamedTuple):
    """Clean samples (n, *shape) float64 on the CPU, unit noise like them, labels, wrong labels.

    Labels are None where the teacher takes none, wrong ones where there is a single class, too.
    """

    clean: Tensor
    noise: Tensor
    labels: Tensor | None
    wrong: Tensor | None


def draw_batch(
    samples: NDArray[np.generic], labels: NDArray[np.int64], conditional: bool, seed: int
) -> Batch:
    rows = even_rows(len(samples), SAMPLES)
    clean = as_float(samples[rows]).to(torch.float64)
    noise = torch.from_numpy(draw(seed, rows, tuple(clean.shape[1:]))[0]).to(torch.float64)
    if not conditional:
        return Batch(clean, noise, None, None)
    own = torch.from_numpy(np.array(labels[rows]))
    return Batch(clean, noise, own, other_labels(own, seed))


def other_labels(labels: Tensor, seed: int) -> Tensor | None:
    """For each label another one (n,), drawn from the rest of the samples; None for one class."""
    own = labels.numpy()
    if len(np.unique(own)) < 2:
        return None
    generator = np.random.default_rng(seed)
    return torch.from_numpy(np.array([generator.choice(own[own != label]) for label in own]))


def errors(found: Tensor, clean: Tensor) -> NDArray[np.float64]:
    """Mean squared error of each sample (n,)."""
    return ((found - clean) ** 2).flatten(1).mean(1).numpy()


@torch.inference_mode()
def denoised(teacher: Teacher, batch: Batch, time: Tensor, labels: Tensor | None) -> Tensor:
    """The teacher's E[x₀ | x_t] of a batch with these labels, float64 on the CPU.

    Raises:
        DivergedError: it is not finite.
    """
    device = next(chain(teacher.parameters(), teacher.buffers())).device
    path, dtype = teacher.path(time), state_dtype(device)
    states = (path.alpha * batch.clean + path.sigma * batch.noise).to(dtype)
    found = torch.empty_like(batch.clean)
    for start in range(0, len(states), BATCH):
        rows = slice(start, start + BATCH)
        own = None if labels is None else labels[rows].to(device)
        found[rows] = teacher.denoise(states[rows].to(device), time.to(device, dtype), own)
    if not found.isfinite().all():
        raise DivergedError("the teacher's output for the data, with noise of level "
                            f"{float(path.sigma / path.alpha):.3g}, is not finite: its weights "
                            "are damaged, or its settings are not those it was trained with")
    return found


def check_denoising(
    teacher: Teacher, dataset: Dataset, seed: int, unlabelled: bool = False
) -> DenoisingCheck | None:
    """Compare a teacher with linear denoisers on held-out samples, in float32.

    Args:
        teacher: in eval mode, of the data's shape, with the data's classes or none.
        unlabelled: whether a teacher with labels is also asked without them.

    Returns:
        None where there are too few held-out samples to tell.

    Raises:
        DivergedError: the teacher's output is not finite.
    """
    if len(dataset.test_samples) < LEAST:
        return None
    classes, unit = teacher.spec.num_classes, dataset.info.samples.sigma_data**2
    wiener = fit_wiener(dataset.train_samples, dataset.train_labels, classes)
    test = draw_batch(dataset.test_samples, dataset.test_labels, bool(classes), seed)
    counts = resampling(len(test.clean), REPLICATES, seed)
    levels: list[LevelCheck] = []
    gains: list[NDArray[np.float64]] = []
    alone: list[NDArray[np.float64]] = []
    for time in times(teacher, dataset.info.samples.sigma_data):
        level = float(teacher.path(time).sigma / teacher.path(time).alpha)
        ours = denoised(teacher, test, time, test.labels)
        found = compare(ours, test, wiener, level, counts, unit)
        if found.worse:
            train = draw_batch(dataset.train_samples, dataset.train_labels, bool(classes), seed)
            learnt = compare(denoised(teacher, train, time, train.labels), train, wiener, level,
                             resampling(len(train.clean), REPLICATES, seed), unit)
            found = found.model_copy(update={"train_excess": learnt.excess})
        levels.append(found)
        if test.wrong is not None:
            misled = denoised(teacher, test, time, test.wrong)
            gains.append(gain(ours, misled, test, wiener, level) / unit)
        if classes and unlabelled:
            asked = test._replace(labels=None)
            alone.append(excess(denoised(teacher, asked, time, None), asked, wiener, level))
    return DenoisingCheck(
        n=len(test.clean), levels=levels,
        labels=judge_labels(np.mean(gains, axis=0), counts) if gains else None,
        unlabelled=bounds(np.mean(alone, axis=0) / unit, counts) if alone else None)


def times(teacher: Teacher, sigma_data: float) -> list[Tensor]:
    """The teacher's times of the noise levels that it was trained on, float64 scalars."""
    wanted = [factor * sigma_data for factor in LEVELS]
    inside = [level for level in wanted if teacher.lowest <= level <= teacher.highest]
    return list(teacher.time_at(torch.tensor(inside, dtype=torch.float64)))


def compare(
    found: Tensor, batch: Batch, wiener: Wiener, level: float, counts: Counts, unit: float
) -> LevelCheck:
    """Errors at one noise level, of what the teacher found there."""
    ours, linear, constant = (float(error.mean()) / unit
                              for error in all_errors(found, batch, wiener, level))
    # One false alarm in twenty checks, and not in twenty levels.
    interval = bounds(excess(found, batch, wiener, level) / unit, counts, 1 - 0.05 / len(LEVELS))
    return LevelCheck(level=level, teacher=ours, linear=linear, constant=constant, excess=interval)


def excess(found: Tensor, batch: Batch, wiener: Wiener, level: float) -> NDArray[np.float64]:
    """The teacher's errors minus those of the better one of the other two (n,)."""
    ours, linear, constant = all_errors(found, batch, wiener, level)
    return ours - (linear if linear.mean() <= constant.mean() else constant)


def all_errors(
    found: Tensor, batch: Batch, wiener: Wiener, level: float
) -> tuple[NDArray[np.float64], ...]:
    """Errors (n,) of the teacher, of the best linear denoiser and of the mean."""
    flat = batch.clean.flatten(1)
    noisy = flat + level * batch.noise.flatten(1)
    linear = min((errors(wiener.denoise(noisy, level, labels), flat)
                  for labels in (None, batch.labels)), key=np.mean)
    return errors(found, batch.clean), linear, errors(wiener.mean.expand_as(flat), flat)


def gain(
    right: Tensor, wrong: Tensor, batch: Batch, wiener: Wiener, level: float
) -> NDArray[np.float64]:
    """Of each sample (3, n): what a wrong label adds to the error of the teacher and of the linear
    denoiser, and the teacher's response.

    Args:
        right, wrong: the teacher's answers with right and wrong labels.
    """
    assert batch.labels is not None and batch.wrong is not None
    flat = batch.clean.flatten(1)
    noisy = flat + level * batch.noise.flatten(1)
    linear = (errors(wiener.denoise(noisy, level, batch.wrong), flat)
              - errors(wiener.denoise(noisy, level, batch.labels), flat))
    ours = errors(wrong, batch.clean) - errors(right, batch.clean)
    return np.stack([ours, linear, errors(right, wrong)])


def judge_labels(gains: NDArray[np.float64], counts: Counts) -> LabelCheck:
    """Whether labels serve the teacher, of gains as `gain` gives them."""
    ours, linear, response = gains
    useful = bounds(linear, counts)[0] > 0
    least = np.maximum(SHARE * linear.mean(), ORDER * response)
    return LabelCheck(teacher=float(ours.mean()), linear=float(linear.mean()),
                      response=float(response.mean()),
                      lack=bounds(least - ours, counts) if useful else None)


def bounds(values: NDArray[np.float64], counts: Counts, level: float = 0.95) -> Bounds:
    """The interval of a mean (n,)."""
    found = mean_estimate(values, counts).interval(level)
    assert found is not None
    return found
