"""What all networks share: the interface and the embedding of time and label."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Network(nn.Module):
    """A map (B, *in_shape) → (B, *out_shape), given a time (B,) and labels (B,) int64 or not."""

    def forward(
        self, x: Tensor, time: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        raise NotImplementedError

    def __call__(
        self, x: Tensor, time: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        return super().__call__(x, time, labels)  # type: ignore[no-any-return]


class ConditionEmbedding(nn.Module):
    """Time and label as one vector (B, width); both parts are optional.

    Times are expected to be of order one; they are given sinusoidal features of geometrically
    spaced frequencies, as in Fourier embeddings of diffusion U-Nets (Tancik et al. 2020).
    """

    frequencies: Tensor

    def __init__(self, width: int, timed: bool, num_classes: int) -> None:
        super().__init__()
        self.timed = timed
        if timed:
            frequencies = torch.logspace(-1, 2, width // 2, base=10.0) * 2 * math.pi / 10
            self.register_buffer("frequencies", frequencies, persistent=False)
            self.map_time = nn.Linear(2 * (width // 2), width)
        self.map_label = nn.Embedding(num_classes, width) if num_classes else None
        self.mix = nn.Linear(width, width)

    def forward(self, time: Tensor | None, labels: Tensor | None) -> Tensor:
        parts = []
        if self.timed:
            assert time is not None, "this network takes a time"
            angles = time.to(torch.float32)[:, None] * self.frequencies
            parts.append(self.map_time(torch.cat([angles.cos(), angles.sin()], dim=1)))
        if self.map_label is not None:
            assert labels is not None, "this network takes labels"
            parts.append(self.map_label(labels))
        return F.silu(self.mix(F.silu(torch.stack(parts).sum(dim=0))))


def zero_init(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """Zero a layer that ends a residual branch, so that the branch starts as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
