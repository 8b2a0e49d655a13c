"""A transformer over patches of images (DiT of Peebles & Xie 2023, arXiv:2212.09748).

Without time and labels it is a plain pre-normalised vision transformer.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdm_core.config import Config
from kdm_core.errors import KDMError
from kdm_core.networks.base import ConditionEmbedding, Network, attention, spread, zero_init

if TYPE_CHECKING:
    from kdm_core.networks.get import GETConfig


class TransformerConfig(Config):
    """DiT; the defaults are the paper's size S with patches of 2 × 2.

    Attributes:
        width: channels of a token.
        blocks: each of self-attention and a two-layer perceptron.
        heads: of self-attention; they divide the width.
        patch: pixels of a token's side.
        mlp_ratio: units of the perceptron, as a multiple of the width.
    """

    kind: Literal["transformer"]
    width: int = Field(384, ge=8, multiple_of=4)
    blocks: int = Field(12, ge=1)
    heads: int = Field(6, ge=1)
    patch: int = Field(2, ge=1)
    mlp_ratio: int = Field(4, ge=1)


class SelfAttention(nn.Module):
    """Attention over tokens (B, N, width), of queries and keys of root mean square 1 (QK-norm)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.norm_q = nn.RMSNorm(width // heads)
        self.norm_k = nn.RMSNorm(width // heads)
        self.leave = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # In the weights' precision also under autocast, and back, since attention wants one dtype.
        precise = self.norm_q.weight.dtype
        q = self.norm_q(q.to(precise)).to(v.dtype)
        k = self.norm_k(k.to(precise)).to(v.dtype)
        h = attention(q, k, v)
        mixed: Tensor = self.leave(h.transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """Self-attention and a perceptron, each a residual branch that starts at zero (adaLN-Zero).

    The condition scales and shifts what a branch sees, and scales what it adds.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int, conditioned: bool) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width, 1e-6, elementwise_affine=not conditioned)
        self.attention = SelfAttention(width, heads)
        self.norm_mlp = nn.LayerNorm(width, 1e-6, elementwise_affine=not conditioned)
        self.first = nn.Linear(width, mlp_ratio * width)
        self.second = nn.Linear(mlp_ratio * width, width)
        self.modulate = nn.Linear(width, 6 * width) if conditioned else None

    def reset(self) -> None:
        """Initial weights that make the block the identity."""
        # With gates at zero, branches may start with any weights; without, their ends are zero.
        ends = [self.attention.leave, self.second] if self.modulate is None else [self.modulate]
        for layer in ends:
            zero_init(layer)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        if self.modulate is None:
            x = x + self.attention(self.norm_attention(x))
            return x + self.mlp(self.norm_mlp(x))
        modulation: Tensor = self.modulate(condition)[:, None]
        scale_a, shift_a, gate_a, scale_m, shift_m, gate_m = modulation.chunk(6, dim=2)
        x = x + gate_a * self.attention(self.norm_attention(x) * (1 + scale_a) + shift_a)
        return x + gate_m * self.mlp(self.norm_mlp(x) * (1 + scale_m) + shift_m)

    def mlp(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.second(F.gelu(self.first(x), approximate="tanh"))
        return mixed


class TokenNetwork(Network):
    """A network of tokens, one for each patch of a grid of (rows, columns)."""

    grid: tuple[int, int]

    def activations(self, evaluate: Callable[[], object]) -> list[Tensor]:
        """As of any network; tokens come as the pixels (B, width, rows, columns) of an image."""
        return [tokens.transpose(1, 2).reshape(len(tokens), -1, *self.grid)
                for tokens in super().activations(evaluate)]


class Transformer(TokenNetwork):
    """See `TransformerConfig`. Maps (B, C, H, W) to (B, C', H, W) with H and W kept."""

    positions: Tensor

    def __init__(
        self,
        config: TransformerConfig,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        timed: bool = False,
        num_classes: int = 0,
    ) -> None:
        """Build it with fresh weights.

        Raises:
            KDMError: it cannot map between these shapes, or its heads do not divide its width.
        """
        super().__init__()
        check_shapes(config, in_shape, out_shape)
        conditioned = timed or num_classes > 0
        width, self.patch = config.width, config.patch
        self.grid = (in_shape[1] // self.patch, in_shape[2] // self.patch)
        self.register_buffer("positions", sincos_positions(*self.grid, width), persistent=False)
        self.embed = ConditionEmbedding(width, timed, num_classes) if conditioned else None
        self.enter = nn.Linear(in_shape[0] * self.patch**2, width)
        self.blocks = nn.ModuleList([
            Block(width, config.heads, config.mlp_ratio, conditioned)
            for _ in range(config.blocks)])
        self.norm = nn.LayerNorm(width, 1e-6, elementwise_affine=not conditioned)
        self.modulate = nn.Linear(width, 2 * width) if conditioned else None
        self.leave = nn.Linear(width, out_shape[0] * self.patch**2)
        self.reset()

    def reset(self) -> None:
        """Initial weights as published, but for the last layer's, which are not zero here.

        A student is a chain of networks, the first of which would get no gradient at the start.
        """
        for layer in [self.enter, self.leave, *self.blocks.modules()]:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.reset()
        if self.modulate is not None:
            zero_init(self.modulate)

    def stages(self) -> list[nn.Module]:
        return spread(self.blocks)

    def condition(self, x: Tensor, time: Tensor | None, labels: Tensor | None) -> Tensor | None:
        return self.embed(time, labels) if self.embed is not None else None

    def encode(self, x: Tensor, condition: Tensor | None) -> list[Tensor]:
        """As of any network; tokens come as (B, width, N)."""
        h = self.enter(patchify(x, self.patch)) + self.positions
        for block in list(self.blocks)[: len(self.blocks) // 2]:
            h = block(h, condition)
        return [h.transpose(1, 2)]

    def decode(self, levels: list[Tensor], condition: Tensor | None) -> Tensor:
        h = levels.pop().transpose(1, 2)
        for block in list(self.blocks)[len(self.blocks) // 2 :]:
            h = block(h, condition)
        h = self.norm(h)
        if self.modulate is not None:
            scale, shift = self.modulate(condition)[:, None].chunk(2, dim=2)
            h = h * (1 + scale) + shift
        return unpatchify(self.leave(h), self.patch, self.grid)


def patchify(x: Tensor, patch: int) -> Tensor:
    """Images (B, C, H, W) as tokens (B, H/patch · W/patch, C · patch²), row by row."""
    return F.pixel_unshuffle(x, patch).flatten(2).transpose(1, 2)


def unpatchify(tokens: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of `patchify` for a grid of (rows, columns) of tokens."""
    batch, _, channels = tokens.shape
    return F.pixel_shuffle(tokens.transpose(1, 2).reshape(batch, channels, *grid), patch)


def sincos_positions(rows: int, columns: int, width: int) -> Tensor:
    """Sines and cosines (rows · columns, width) of a token's place; half the width is its row's.

    Frequencies are those of Vaswani et al. 2017 (arXiv:1706.03762, section 3.5), 1 … 1/10000.
    """
    frequencies = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))

    def waves(count: int) -> Tensor:
        angles = torch.outer(torch.arange(count, dtype=torch.float64), frequencies)
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    row = waves(rows)[:, None].expand(-1, columns, -1)
    column = waves(columns)[None].expand(rows, -1, -1)
    return torch.cat([row, column], dim=2).flatten(0, 1).to(torch.float32)


def check_shapes(
    config: "TransformerConfig | GETConfig", in_shape: tuple[int, ...], out_shape: tuple[int, ...]
) -> None:
    """Refuse what the network cannot map.

    Raises:
        KDMError: these are no images of one size, or patches or heads do not divide evenly.
    """
    if len(in_shape) != 3 or len(out_shape) != 3 or in_shape[1:] != out_shape[1:]:
        raise KDMError(f"network.kind: a transformer keeps height and width, but is asked to map "
                       f"{in_shape} to {out_shape}; use kind: mlp")
    if in_shape[1] % config.patch or in_shape[2] % config.patch:
        raise KDMError(f"network.patch: patches of {config.patch} pixels do not divide images of "
                       f"{in_shape[1]} × {in_shape[2]}; choose a divisor of both")
    if config.width % config.heads:
        raise KDMError(f"network.heads: {config.heads} heads do not divide a width of "
                       f"{config.width}; choose a divisor of it")
