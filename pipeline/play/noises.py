"""The noises of a page, and the ways from one to another."""

from typing import NamedTuple

import torch
from torch import Tensor

from kdm_core.noise import draw
from kdm_core.students.base import Student
from kdm_core.studies.interpolation import great_circle


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
    start, other = torch.from_numpy(drawn), torch.from_numpy(others)
    own = great_circle(start, other, torch.tensor([weight], dtype=torch.float64))[:, 0]
    labels = torch.from_numpy(classes).to(device)
    if label is not None:
        labels = torch.full_like(labels, label)
    return Noises(own.to(device), other.to(device), spec.told(labels))
