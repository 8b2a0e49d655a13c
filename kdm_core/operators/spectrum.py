"""Penalties on the eigenvalues of an operator.

The paper (appendix C) has them in mind and defines none; these are the published code's three.
All are a mean distance of the eigenvalues λ_j in the complex plane to targets τ_j that stay where
they are, weight · mean_j |λ_j − τ_j|. Which target belongs to which eigenvalue is a choice. Where
eigenvalues are parameters, it is their index. Where they come out of a solver their order means
nothing, and changes from step to step: pulled to targets by that order, as in the published code,
they shrink towards the mean of the targets. There both are taken in the order of their angles.
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdm_core.config import Config


class SpectrumConfig(Config):
    """Where eigenvalues are pulled to.

    Attributes:
        kind: `uniform`, random points of the square [−1, 1]², as the published code draws them for
            its factorised operator (for its dense one it takes [0, 1]²); `gradual`, half of them of
            modulus 0.9 to 1 and half of modulus up to 0.5, at random angles; `circle`, which in the
            published code is the single point 1, and so a pull towards the identity.
        weight: of the penalty in the loss; 1 in the published code.
    """

    kind: Literal["uniform", "gradual", "circle"]
    weight: float = Field(1.0, ge=0)


def draw_targets(kind: Literal["uniform", "gradual", "circle"], dim: int) -> Tensor:
    """Targets of `dim` eigenvalues, (dim, 2) real and imaginary parts, by angle."""
    if kind == "circle":
        return torch.tensor([1.0, 0.0]).repeat(dim, 1)
    if kind == "uniform":
        return by_angle(2 * torch.rand(dim, 2) - 1)
    high = dim - dim // 2
    modulus = torch.cat([0.9 + 0.1 * torch.rand(high), 0.5 * torch.rand(dim - high)])
    angle = 2 * math.pi * torch.rand(dim)
    return by_angle(torch.stack([modulus * angle.cos(), modulus * angle.sin()], dim=1))


def by_angle(values: Tensor) -> Tensor:
    """Complex numbers (d, 2), given as real and imaginary parts, from angle −π to π."""
    return values[torch.atan2(values[:, 1], values[:, 0]).argsort()]


class SpectralPenalty(nn.Module):
    """See `SpectrumConfig`. The targets are saved with the weights."""

    targets: Tensor

    def __init__(self, config: SpectrumConfig, dim: int) -> None:
        super().__init__()
        self.weight = config.weight
        self.register_buffer("targets", draw_targets(config.kind, dim))

    def forward(self, values: Tensor) -> Tensor:
        """The penalty of eigenvalues (d, 2), given as real and imaginary parts; a scalar."""
        distance: Tensor = torch.linalg.vector_norm(values - self.targets, dim=1)
        return self.weight * distance.mean()
