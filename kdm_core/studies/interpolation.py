"""Walks between two noises, on their sphere and in the student's latent space."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from kdm_core.config import Config
from kdm_core.errors import at_most
from kdm_core.figures.interpolation import interpolation_of_images, interpolation_of_points
from kdm_core.studies.base import Finding, Inapplicable, Subject, mean_square, varied

SHOWN = 7  # images a row
BACKGROUND = 4000  # real points behind the samples


class InterpolationConfig(Config):
    """How many walks. The teacher samples pairs × positions, the student twice as many.

    Attributes:
        pairs: of noises; both ends have one label where there are classes.
        positions: on each walk, both ends among them.
        shown: of the pairs in the figure.
    """

    pairs: int = Field(8, ge=1)
    positions: int = Field(13, ge=3)
    shown: int = Field(2, ge=1)


class Ends(NamedTuple):
    """Noises (n, *shape) where walks start and end, and their labels (n,)."""

    start: Tensor
    end: Tensor
    labels: Tensor


def interpolation(subject: Subject, config: InterpolationConfig) -> Finding:
    """Both models on great circles of noise, and the student on straight lines of its latents.

    The operator is linear, so a straight line between encoded noises is one between pushed
    latents, too.
    """
    ends = pair_up(subject, config.pairs)
    walks = {key: samples.numpy()
             for key, samples in sample_walks(subject, ends, config.positions).items()}
    steps = {key: step_lengths(samples) for key, samples in walks.items()}
    numbers: dict[str, float | int] = {"pairs": len(ends.labels), "positions": config.positions}
    for key, lengths in steps.items():
        numbers |= {f"{key}_{what}": value for what, value in smoothness(lengths).items()}
        if key != "teacher":
            numbers[f"{key}_mse_to_teacher"] = mean_square(walks[key], walks["teacher"])
    shown = {key: samples[: config.shown] for key, samples in walks.items()}
    if subject.spec.kind == "image":
        places = np.linspace(0, config.positions - 1, min(SHOWN, config.positions))
        figure = interpolation_of_images(
            {key: samples[:, places.round().astype(int)] for key, samples in shown.items()},
            steps, subject.name)
    else:
        noise = great_circle(ends.start, ends.end, evenly(config.positions))[: config.shown].numpy()
        figure = interpolation_of_points({"noise": noise, **shown}, steps, subject.name,
                                         np.asarray(subject.train_samples[:BACKGROUND]))
    return Finding(
        name="interpolation", title="From one noise to another", figure=figure,
        alt=f"{len(shown['teacher'])} walks from one noise to another, each by "
            f"{', by '.join(_who(key, subject.name) for key in walks)}; below, the length of each "
            "step of the walks.",
        caption=_caption(subject.name, numbers), numbers=numbers)


def pair_up(subject: Subject, pairs: int) -> Ends:
    """The first noises in pairs, both with the label of the first.

    Raises:
        Inapplicable: there are not two noises.
    """
    if len(subject.noise) < 2:
        raise Inapplicable("it takes two unseen noises, and there is one", field="")
    n = at_most("pairs", pairs, len(subject.noise) // 2, "pairs of unseen noises")
    chosen = varied(subject.labels, 2 * n)
    return Ends(subject.noise[chosen[:n]], subject.noise[chosen[n:]], subject.labels[chosen[:n]])


def sample_walks(subject: Subject, ends: Ends, positions: int) -> dict[str, Tensor]:
    """Samples (n, positions, *shape) of the teacher, the student, and the student's latents."""
    n = len(ends.labels)
    labels = ends.labels.repeat_interleave(positions)
    noise = great_circle(ends.start, ends.end, evenly(positions)).flatten(0, 1)

    def by_walk(samples: Tensor) -> Tensor:
        return samples.reshape(n, positions, *samples.shape[1:])

    walks = {"teacher": by_walk(subject.sample_teacher(noise, labels)),
             "student": by_walk(subject.sample_student(noise, labels))}
    if subject.sample_latent is not None:
        walks["latent"] = by_walk(subject.sample_latent(
            ends.start.repeat_interleave(positions, 0), ends.end.repeat_interleave(positions, 0),
            torch.linspace(0, 1, positions).repeat(n), labels))
    return walks


def evenly(positions: int) -> Tensor:
    """Weights (positions,) from 0 to 1."""
    return torch.linspace(0, 1, positions, dtype=torch.float64)


def great_circle(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """Noise (n, positions, *shape) on the arcs between noises (n, *shape).

    The direction is interpolated spherically (Shoemake, SIGGRAPH 1985) and the norm linearly, so
    that all is as far out as noise is. Parallel directions, which have no arc, are joined by a
    straight line.

    Args:
        start, end: on the CPU, as what is made of them.
        weight: (positions,) float64 in [0, 1], of the end.
    """
    a, b = (x.flatten(1).to(torch.float64) for x in (start, end))
    norms = [x.norm(dim=1, keepdim=True) for x in (a, b)]
    towards = [x / norm for x, norm in zip((a, b), norms, strict=True)]
    angle = (towards[0] * towards[1]).sum(1, keepdim=True).clamp(-1, 1).acos()
    straight = angle.sin() < 1e-6
    scale = torch.where(straight, 1.0, angle.sin())
    left = torch.where(straight, 1 - weight, ((1 - weight) * angle).sin() / scale)
    right = torch.where(straight, weight, (weight * angle).sin() / scale)
    direction = left[..., None] * towards[0][:, None] + right[..., None] * towards[1][:, None]
    norm = (1 - weight) * norms[0] + weight * norms[1]
    noise: Tensor = (norm[..., None] * direction).to(start.dtype)
    return noise.reshape(-1, len(weight), *start.shape[1:])


def step_lengths(samples: NDArray[np.float32]) -> NDArray[np.float64]:
    """Root mean squared differences (n, k - 1) between neighbours on walks (n, k, *shape)."""
    steps = np.diff(samples.reshape(*samples.shape[:2], -1).astype(np.float64), axis=1)
    lengths: NDArray[np.float64] = np.sqrt(np.square(steps).mean(2))
    return lengths


def smoothness(lengths: NDArray[np.float64]) -> dict[str, float]:
    """How walks with steps of such lengths (n, k - 1) move.

    Returns:
        length: of a walk, the sum of its steps, in the mean over walks.
        mean_squared_step: over all steps.
        largest_over_mean_step: in the mean over walks; 1 for even steps, k - 1 for a single jump.
    """
    mean, largest = lengths.mean(1), lengths.max(1)
    # A walk that stays where it is has even steps.
    evenness = np.divide(largest, mean, out=np.ones_like(mean), where=mean > 0)
    return {"length": float(lengths.sum(1).mean()),
            "mean_squared_step": float(np.square(lengths).mean()),
            "largest_over_mean_step": float(evenness.mean())}


def _caption(name: str, numbers: dict[str, float | int]) -> str:
    kinds = [key for key in ("teacher", "student", "latent") if f"{key}_length" in numbers]
    said = "; ".join(
        f"{_who(key, name)}: length {numbers[f'{key}_length']:.3g}, largest step "
        f"{numbers[f'{key}_largest_over_mean_step']:.2f} times the mean one" for key in kinds)
    compared = " and ".join(f"{numbers[f'{key}_mse_to_teacher']:.3g} ({_who(key, name)})"
                            for key in kinds[1:])
    return (f"Walks between {numbers['pairs']} pairs of noises, each in {numbers['positions']} "
            "positions: both models walk on arcs of noise"
            + (f", and {name} also on straight lines between its latents of the two noises. "
               if "latent" in kinds else ". ")
            + "Smooth models change a little at each step, others stand still and jump. As root "
              f"mean squared differences: {said}. The mean squared difference to the teacher at "
              f"the same position is {compared}.")


def _who(key: str, name: str) -> str:
    return {"teacher": "the teacher", "student": name, "latent": f"{name} on latents"}[key]
