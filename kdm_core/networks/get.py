"""The generative equilibrium transformer (Geng, Pokle & Kolter 2023, arXiv:2401.08639).

A few blocks are applied to their own output again and again, each time with the same injection of
the input. It takes no time: it maps noise to samples.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdm_core.config import Config
from kdm_core.networks.base import attention, spread, zero_init
from kdm_core.networks.transformer import (
    TokenNetwork,
    check_shapes,
    patchify,
    sincos_positions,
    unpatchify,
)

TIED = 3
"""Blocks of the equilibrium, which are iterated."""


class GETConfig(Config):
    """GET; the defaults are the paper's size B. The others: T 256, 6, 4, 6; M 384, 6, 6, 6; S 512,
    6, 8, 8; B+ 768, 6, 12, 8 (width, injection, heads, mlp_ratio).

    Attributes:
        width: channels of a token.
        injection: blocks that look at the input once.
        heads: of self-attention; they divide the width.
        mlp_ratio: units of the iterated blocks' perceptrons, as a multiple of the width; of the
            others they are four times it.
        iterations: of the iterated blocks.
        patch: pixels of a token's side.
    """

    kind: Literal["get"]
    width: int = Field(768, ge=8, multiple_of=4)
    injection: int = Field(1, ge=1)
    heads: int = Field(12, ge=1)
    mlp_ratio: int = Field(12, ge=1)
    iterations: int = Field(6, ge=1)
    patch: int = Field(2, ge=1)


class Block(nn.Module):
    """Self-attention, to whose queries, keys and values something is added, and a perceptron."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width, 1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.leave = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width, 1e-6)
        self.first = nn.Linear(width, mlp_ratio * width)
        self.second = nn.Linear(mlp_ratio * width, width)

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        qkv = self.qkv(self.norm_attention(x))
        qkv = qkv if added is None else qkv + added
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = attention(q, k, v)
        x = x + self.leave(h.transpose(1, 2).flatten(2))
        mixed: Tensor = x + self.second(F.gelu(self.first(self.norm_mlp(x))))
        return mixed


class GET(TokenNetwork):
    """See `GETConfig`. Maps (B, C, H, W) to (B, C', H, W) with H and W kept.

    The iteration starts at zero, so that a sample is a function of its noise (the published code
    draws its start).
    """

    positions: Tensor

    def __init__(
        self,
        config: GETConfig,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        timed: bool = False,
        num_classes: int = 0,
    ) -> None:
        """Build it with fresh weights. A time is taken and not looked at.

        Raises:
            KDMError: it cannot map between these shapes, or its heads do not divide its width.
        """
        super().__init__()
        check_shapes(config, in_shape, out_shape)
        width, self.patch, self.iterations = config.width, config.patch, config.iterations
        self.grid = (in_shape[1] // self.patch, in_shape[2] // self.patch)
        self.register_buffer("positions", sincos_positions(*self.grid, width), persistent=False)
        self.enter = nn.Linear(in_shape[0] * self.patch**2, width)
        self.injection = nn.ModuleList([
            Block(width, config.heads, 4) for _ in range(config.injection)])
        self.inject = nn.Linear(width, 3 * width * TIED, bias=False)
        self.map_label = nn.Embedding(num_classes, 3 * width) if num_classes else None
        self.blocks = nn.ModuleList([
            Block(width, config.heads, config.mlp_ratio) for _ in range(TIED)])
        self.norm = nn.LayerNorm(width, 1e-6)
        self.leave = nn.Linear(width, out_shape[0] * self.patch**2)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        if self.map_label is not None:
            nn.init.normal_(self.map_label.weight, std=0.02)
        zero_init(self.leave)

    def forward(
        self, x: Tensor, time: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        return self.iterates(x, labels, self.iterations)[-1]

    def iterates(self, x: Tensor, labels: Tensor | None, last: int = 1) -> list[Tensor]:
        """The outputs (B, *out_shape) of the iterations, from number `last` on.

        Args:
            x: (B, *in_shape).
            labels: (B,), −1 for "no label"; None for none.
        """
        h = self.enter(patchify(x, self.patch)) + self.positions
        added = self.of_classes(labels, h)
        for block in self.injection:
            h = block(h, added)
        injected = self.inject(h).chunk(TIED, dim=2)
        if added is not None:
            injected = tuple(one + added for one in injected)
        z = torch.zeros_like(h)
        found: list[Tensor] = []  # torch.compile cannot translate list[Tensor]()
        for number in range(1, self.iterations + 1):
            for block, one in zip(self.blocks, injected, strict=True):
                z = block(z, one)
            if number >= last:
                found.append(unpatchify(self.leave(self.norm(z)), self.patch, self.grid))
        return found

    def of_classes(self, labels: Tensor | None, like: Tensor) -> Tensor | None:
        """What is added to all queries, keys and values for the class, (B, 1, 3 width)."""
        if self.map_label is None or labels is None:
            return None
        known = (labels >= 0)[:, None]
        added: Tensor = self.map_label(labels.clamp(min=0)) * known
        return added.to(like.dtype)[:, None]

    def class_weights(self) -> list[tuple[Tensor, int]]:
        return [] if self.map_label is None else [(self.map_label.weight, 0)]

    def stages(self) -> list[nn.Module]:
        return spread(self.injection)
