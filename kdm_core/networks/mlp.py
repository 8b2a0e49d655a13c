"""A residual multilayer perceptron for points and for small images taken as vectors."""

from math import prod
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdm_core.config import Config
from kdm_core.networks.base import ConditionEmbedding, Network, spread, zero_init

Condition = tuple[Tensor | None, Tensor | None]


class MLPConfig(Config):
    """Residual MLP: `blocks` pre-normalised blocks of `width` units each.

    Attributes:
        width: units of every layer, and of the embedding of time and class.
        blocks: number of residual blocks, of two layers each.
    """

    kind: Literal["mlp"]
    width: int = Field(256, ge=8)
    blocks: int = Field(4, ge=1)


class Block(nn.Module):
    """x + W₂ silu(W₁ norm(x)), the norm scaled and shifted by the condition."""

    def __init__(self, width: int, conditioned: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=not conditioned)
        self.modulate = zero_init(nn.Linear(width, 2 * width)) if conditioned else None
        self.first = nn.Linear(width, width)
        self.second = zero_init(nn.Linear(width, width))

    def forward(self, x: Tensor, condition: Tensor | None, chosen: Tensor | None) -> Tensor:
        h = self.norm(x)
        if self.modulate is not None:
            modulation = self.modulate(condition)
            if chosen is not None:
                # A product with one-hot rows is exact, and sums its gradient in float32.
                modulation = chosen @ modulation
            scale, shift = modulation.chunk(2, dim=1)
            h = h * (1 + scale) + shift
        mixed: Tensor = self.second(F.silu(self.first(h)))
        return x + mixed


class MLP(Network):
    """See `MLPConfig`. Inputs and outputs of any shape, flattened inside."""

    def __init__(
        self,
        config: MLPConfig,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        timed: bool = False,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        conditioned = timed or num_classes > 0
        width = config.width
        self.out_shape = out_shape
        self.embed = ConditionEmbedding(width, timed, num_classes) if conditioned else None
        self.enter = nn.Linear(prod(in_shape), width)
        self.blocks = nn.ModuleList([Block(width, conditioned) for _ in range(config.blocks)])
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, prod(out_shape))

    def stages(self) -> list[nn.Module]:
        return spread(self.blocks)

    def condition(self, x: Tensor, time: Tensor | None, labels: Tensor | None) -> Condition:
        # Not of samples in float32: there a CPU rounds a row by how many there are, and a sample
        # would depend on its batch. In bfloat16 all is as before to the bit.
        sharing = self.training or (
            x.device.type != "meta" and torch.is_autocast_enabled(x.device.type))
        return self.conditions(time, labels, sharing)

    def encode(self, x: Tensor, condition: Condition) -> list[Tensor]:
        h = self.enter(x.flatten(1))
        for block in list(self.blocks)[: len(self.blocks) // 2]:
            h = block(h, *condition)
        return [h]

    def decode(self, levels: list[Tensor], condition: Condition) -> Tensor:
        h = levels.pop()
        for block in list(self.blocks)[len(self.blocks) // 2 :]:
            h = block(h, *condition)
        out: Tensor = self.leave(F.silu(self.norm(h)))
        return out.reshape(h.shape[0], *self.out_shape)

    def conditions(
        self, time: Tensor | None, labels: Tensor | None, sharing: bool
    ) -> Condition:
        """Embedded conditions (n, width), and which of them each sample has, as one-hot rows
        (B, n); None where each sample has its own.

        Samples of a class at one time share a condition. Half of a batch's products, those of
        `modulate`, are then of as many rows as there are classes.
        """
        if self.embed is None:
            return None, None
        classes = self.embed.map_label if sharing else None
        # That a time was expanded says that it is the same for all, with no look at its values.
        if (classes is None or labels is None or len(labels) <= classes.num_embeddings
                or (time is not None and time.stride(0) != 0)):
            return self.embed(time, labels), None
        known = torch.arange(-1, classes.num_embeddings, device=labels.device)
        times = None if time is None else time[0].expand(len(known))
        condition = self.embed(times, known)
        return condition, (labels[:, None] == known).to(condition.dtype)
