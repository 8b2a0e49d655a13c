"""A residual multilayer perceptron for points and for small images taken as vectors."""

from math import prod
from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdm_core.config import Config
from kdm_core.networks.base import ConditionEmbedding, Network, spread, zero_init


class MLPConfig(Config):
    """Residual MLP: `blocks` pre-normalised blocks of `width` units each."""

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

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        h = self.norm(x)
        if self.modulate is not None:
            scale, shift = self.modulate(condition).chunk(2, dim=1)
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

    def forward(
        self, x: Tensor, time: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        condition = self.embed(time, labels) if self.embed is not None else None
        h = self.enter(x.flatten(1))
        for block in self.blocks:
            h = block(h, condition)
        out: Tensor = self.leave(F.silu(self.norm(h)))
        return out.reshape(x.shape[0], *self.out_shape)
