"""The noises of a page, and the ways from one to another."""

from typing import NamedTuple

import torch
from torch import Tensor

from kdm_core.noise import draw
from kdm_core.students.base import Student


class Noises(NamedTuple):
    """What both models are given.

    Attributes:
        own: (n, *shape), between the two seeds.
        other: (n, *shape), of the other seed.
        labels: (n,) int64; None without classes.
    """

    own: Tensor
    other: Tensor
    labels: Tensor | None


def draw_noises(
    student: Student, n: int, seed: int, other_seed: int, weight: float, label: int | None
) -> Noises:
    """The first n noises of two seeds, and those between them.

    Args:
        seed, other_seed: at least 0. The samples of weight 0 are those of `Student.sample`.
        weight: of the other seed's noises, in [0, 1].
        label: of all samples; None for those that the seed draws.
    """
    device = next(student.parameters()).device
    spec = student.spec
    drawn, classes = draw(seed, range(n), spec.sample_shape, "float32", spec.num_classes,
                          student.label_weights)
    others, _ = draw(other_seed, range(n), spec.sample_shape, "float32")
    own, other = (torch.from_numpy(noise).to(device) for noise in (drawn, others))
    labels = torch.from_numpy(classes).to(device)
    if label is not None:
        labels = torch.full_like(labels, label)
    return Noises(slerp(own, other, weight), other, spec.told(labels))


def slerp(start: Tensor, end: Tensor, weight: float) -> Tensor:
    """Noise (n, *shape) on the arcs from noises (n, *shape) to others, a share of the way.

    Directions are interpolated on the sphere (Shoemake, SIGGRAPH 1985) and norms linearly, so that
    all is as far out as noise is. Parallel directions have no arc and are joined by a line.

    Args:
        weight: 0 for the start, 1 for the end.
    """
    if weight in (0, 1):  # to the last bit
        return start if weight == 0 else end
    a, b = start.flatten(1), end.flatten(1)
    norms = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    a, b = a / norms[0], b / norms[1]
    angle = (a * b).sum(1, keepdim=True).clamp(-1, 1).acos()
    straight = angle.sin() < 1e-6
    scale = torch.where(straight, 1.0, angle.sin())
    left = torch.where(straight, 1 - weight, ((1 - weight) * angle).sin() / scale)
    right = torch.where(straight, weight, (weight * angle).sin() / scale)
    norm = (1 - weight) * norms[0] + weight * norms[1]
    mixed: Tensor = norm * (left * a + right * b)
    return mixed.reshape(start.shape)
