"""What becomes of a noise's neighbours (section 6.1, figures 3 and 10 to 12 of the KDM paper)."""

from collections.abc import Callable
from math import atan, cos, inf, sin
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor

from kdm_core.config import Config
from kdm_core.errors import at_most
from kdm_core.figures.vicinity import Growth, vicinity_of_images, vicinity_of_points
from kdm_core.studies.base import (
    Finding,
    Inapplicable,
    Sample,
    Subject,
    mean_square,
    spaces,
    varied,
)

SHOWN = 7  # images a row
BACKGROUND = 4000  # real points behind the samples


class VicinityConfig(Config):
    """Which neighbours. Each model samples noises × samples × (sigmas + 1) of them.

    Attributes:
        noises: how many noises have their neighbourhood looked at.
        samples: directions in which each is perturbed, the same ones at every sigma.
        sigmas: sizes of the perturbation, 0 first, growing.
    """

    noises: int = Field(3, ge=1)
    samples: int = Field(8, ge=1)
    sigmas: list[float] = [round(0.05 * i, 2) for i in range(13)]

    @field_validator("sigmas")
    @classmethod
    def _growing(cls, sigmas: list[float]) -> list[float]:
        if len(sigmas) < 2 or sigmas[0] != 0 or (np.diff(sigmas) <= 0).any():
            raise ValueError("sigmas: they start with 0 and grow, such as [0, 0.1, 0.2]")
        return sigmas


class Walks(NamedTuple):
    """Centres (n, *shape), and perturbed (n, k, s, *shape): k sigmas after 0, s directions."""

    centre: Tensor
    perturbed: Tensor


def vicinity(subject: Subject, config: VicinityConfig) -> Finding:
    """Neighbours of a few noises under both models, and how fast they move away.

    The distance is the mean squared difference to what the model makes of the noise itself, in
    pixels and in features, beside that of unrelated noise of the same class: the limit of large
    sigmas, for which the perturbation takes over.
    """
    chosen = varied(subject.labels, at_most("noises", config.noises, len(subject.noise),
                                            "test pairs"))
    noise = neighbours(subject.noise[chosen], subject, config)
    labels = subject.labels[chosen]
    teacher = walk(subject.sample_teacher, noise, labels)
    student = walk(subject.sample_student, noise, labels)
    growths = {space: measure(teacher, student, vectors, config.sigmas)
               for space, vectors in spaces(subject).items()}
    image = subject.spec.kind == "image"
    if image:
        shown = np.linspace(0, len(config.sigmas) - 1, min(SHOWN, len(config.sigmas)))
        columns = shown.round().astype(int)
        figure = vicinity_of_images(_rows(teacher, columns), _rows(student, columns), growths,
                                    [config.sigmas[i] for i in columns], subject.name)
    else:
        clouds = {name: _cloud(walks) for name, walks in
                  (("noise", noise), ("teacher", teacher), ("student", student))}
        real = np.asarray(subject.train_samples[:BACKGROUND])
        figure = vicinity_of_points(clouds, growths, config.sigmas, real, subject.name)
    largest = config.sigmas[-1]
    return Finding(
        name="vicinity", title="The vicinity of a noise", figure=figure,
        alt=(f"Rows of images of the teacher and of {subject.name} from {len(labels)} noises, each "
             f"perturbed more and more up to sigma {largest:g}" if image else
             f"{len(labels)} noises and their neighbours up to sigma {largest:g}, and where the "
             f"teacher and {subject.name} take them")
            + "; below, curves of the distance to the unperturbed sample against sigma.",
        caption=_caption(subject, config, growths, len(labels)),
        numbers={"noises": len(labels), "samples": config.samples, "sigmas": config.sigmas,
                 **{f"{key}_{space}": value for space, growth in growths.items()
                    for key, value in growth.numbers().items()}})


def neighbours(centre: Tensor, subject: Subject, config: VicinityConfig) -> Walks:
    """Noises (n, *shape), and their neighbours at every sigma but 0, and at an infinite one."""
    generator = np.random.default_rng(subject.seed)
    epsilon = generator.standard_normal((len(centre), config.samples, *centre.shape[1:]))
    directions = torch.from_numpy(epsilon.astype(np.float32))
    image = subject.spec.kind == "image"
    perturbed = [torch.stack([perturb(x, towards, sigma, renormalise=image)
                              for x, towards in zip(centre, directions, strict=True)])
                 for sigma in (*config.sigmas[1:], inf)]
    return Walks(renormalised(centre) if image else centre, torch.stack(perturbed, 1))


def perturb(noise: Tensor, epsilon: Tensor, sigma: float, renormalise: bool) -> Tensor:
    """Neighbours (s, *shape) of one noise: x + σε, with unit variance.

    Args:
        noise: x, (*shape).
        epsilon: (s, *shape).
        sigma: 0 … inf; ε itself at inf.
        renormalise: each neighbour's values to mean 0 and deviation 1, as in the paper's section
            6.1. Not for points, whose two values would all become ±1: x + σε is divided by
            sqrt(1 + σ²) there, the deviation that it has over all x and ε.
    """
    # Its angle, so that an infinite sigma is as good as any.
    angle = atan(sigma)
    mixed = cos(angle) * noise + sin(angle) * epsilon
    return renormalised(mixed) if renormalise else mixed


def renormalised(noise: Tensor) -> Tensor:
    """Noise (n, *shape), each with mean 0 and standard deviation 1 over its own values."""
    dims = tuple(range(1, noise.ndim))
    mean = noise.mean(dims, keepdim=True)
    return (noise - mean) / noise.std(dims, correction=0, keepdim=True)


def walk(sample: Sample, noise: Walks, labels: Tensor) -> Walks:
    """What a model makes of noises and their neighbours, which have their noise's label."""
    n, sigmas, directions = noise.perturbed.shape[:3]
    made = sample(torch.cat([noise.centre, noise.perturbed.flatten(0, 2)]),
                  torch.cat([labels, labels.repeat_interleave(sigmas * directions)]))
    return Walks(made[:n], made[n:].reshape(n, sigmas, directions, *made.shape[1:]))


def measure(
    teacher: Walks, student: Walks, vectors: Callable[[Tensor], NDArray[np.float32]],
    sigmas: list[float],
) -> Growth:
    """Mean squared distances at every sigma in the space of `vectors`.

    Raises:
        Inapplicable: the teacher makes the same of all noise, so that no distance has a unit.
    """
    n, count, directions = teacher.perturbed.shape[:3]

    def seen(walks: Walks) -> NDArray[np.float32]:
        """(n, 1 + count, directions, d), the centre first."""
        both = vectors(torch.cat([walks.centre, walks.perturbed.flatten(0, 2)]))
        centre = np.broadcast_to(both[:n, None, None], (n, 1, directions, both.shape[1]))
        return np.concatenate([centre, both[n:].reshape(n, count, directions, -1)], 1)

    a, b = seen(teacher), seen(student)
    own = [[mean_square(x[:, i], x[:, 0]) for i in range(count + 1)] for x in (a, b)]
    between = [mean_square(a[:, i], b[:, i]) for i in range(count)]
    if own[0][-1] == 0:
        raise Inapplicable("the teacher makes the same sample of unrelated noises", field="")
    return Growth(np.array(sigmas), np.array(own[0][:-1]), np.array(own[1][:-1]),
                  np.array(between), own[0][-1], own[1][-1])


def _rows(walks: Walks, columns: NDArray[np.int64]) -> NDArray[np.float32]:
    """Images (n, columns, C, H, W) of each noise in its first direction."""
    line = torch.cat([walks.centre[:, None], walks.perturbed[:, :-1, 0]], 1)
    images: NDArray[np.float32] = line[:, columns].numpy()
    return images


def _cloud(walks: Walks) -> NDArray[np.float32]:
    """Points (n, sigmas, directions, 2), those at sigma 0 among them."""
    centre = walks.centre[:, None, None].expand(-1, 1, walks.perturbed.shape[2], -1)
    points: NDArray[np.float32] = torch.cat([centre, walks.perturbed[:, :-1]], 1).numpy()
    return points


def _caption(
    subject: Subject, config: VicinityConfig, growths: dict[str, Growth], noises: int
) -> str:
    middle = int(np.abs(np.array(config.sigmas) - 0.3).argmin())
    how = ("and renormalised to mean 0 and deviation 1" if subject.spec.kind == "image"
           else "and divided by sqrt(1 + σ²), so that its variance stays 1")
    said = "; ".join(
        f"in {space} the teacher's samples have moved by {growth.teacher[middle] / growth.far:.0%} "
        f"of the distance to unrelated ones, those of {subject.name} by "
        f"{growth.student[middle] / growth.far:.0%}, and the two models differ by "
        f"{growth.between[middle] / growth.far:.0%}" for space, growth in growths.items())
    same = " of the same class" if subject.label_names else ""
    return (f"Noise x is perturbed to x + σε {how}. A student that keeps the teacher's local "
            "structure moves away from its own σ = 0 as the teacher does, and stays near the "
            f"teacher. At σ = {config.sigmas[middle]:g}, {said}: mean squared distances over "
            f"{noises} noises and {config.samples} directions, in units of the teacher's distance "
            f"to samples{same} from unrelated noise.")
