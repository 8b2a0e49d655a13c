"""A compact U-Net for images, of the DDPM++ family (Song et al. 2021; Karras et al. 2022)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdm_core.config import Config
from kdm_core.errors import KDMError
from kdm_core.networks.base import ConditionEmbedding, GroupNorm, Network, attention, zero_init


class UNetConfig(Config):
    """U-Net with `blocks` residual blocks a level.

    Attributes:
        channels: channels of the first level.
        multipliers: channels of each level, as multiples of `channels`; each level after the
            first halves the resolution.
        blocks: residual blocks per level on the way down (one more on the way up).
        attention: resolutions (in pixels) at which blocks are followed by self-attention.
    """

    kind: Literal["unet"]
    channels: int = Field(64, ge=8, multiple_of=8)
    multipliers: list[int] = Field([1, 2, 2, 2], min_length=1)
    blocks: int = Field(4, ge=1)
    attention: list[int] = [16]


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions; the condition scales and shifts what the second one sees."""

    def __init__(self, c_in: int, c_out: int, condition_width: int, attention: bool) -> None:
        super().__init__()
        self.norm_in = GroupNorm(8, c_in)
        self.conv_in = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm_mid = GroupNorm(8, c_out)
        self.modulate = (
            zero_init(nn.Linear(condition_width, 2 * c_out)) if condition_width else None
        )
        self.conv_out = zero_init(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.attention = SelfAttention(c_out) if attention else None

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        h = self.norm_mid(self.conv_in(F.silu(self.norm_in(x))))
        if self.modulate is not None:
            scale, shift = self.modulate(condition)[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        mixed: Tensor = self.skip(x) + self.conv_out(F.silu(h))
        return mixed if self.attention is None else self.attention(mixed)


class SelfAttention(nn.Module):
    """Single-head attention over all pixels, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(8, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.leave = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        # One head: without a dimension of heads, CPUs take a kernel a fifth as fast.
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)[:, None].chunk(3, dim=3)
        h = attention(q, k, v)
        mixed: Tensor = self.leave(h.transpose(2, 3).reshape(x.shape))
        return x + mixed


class UNet(Network):
    """See `UNetConfig`. Maps (B, C, H, W) to (B, C', H, W) with H and W kept."""

    def __init__(
        self,
        config: UNetConfig,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        timed: bool = False,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        levels = len(config.multipliers)
        if len(in_shape) != 3 or in_shape[1:] != out_shape[1:]:
            raise KDMError(f"network.kind: a unet keeps height and width, but is asked to map "
                           f"{in_shape} to {out_shape}; use kind: mlp")
        if in_shape[1] % 2 ** (levels - 1) or in_shape[2] % 2 ** (levels - 1):
            raise KDMError(f"network.multipliers: {levels} levels need a height and width "
                           f"divisible by {2 ** (levels - 1)}, found {in_shape[1:]}")
        self.config = config
        conditioned = timed or num_classes > 0
        width = 4 * config.channels if conditioned else 0
        self.embed = ConditionEmbedding(width, timed, num_classes) if conditioned else None
        self.enter = nn.Conv2d(in_shape[0], config.channels, 3, padding=1)

        channels, resolution = config.channels, in_shape[1]
        skips = [channels]
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(config.multipliers):
            if level:
                self.down.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
                resolution //= 2
                skips.append(channels)
            for _ in range(config.blocks):
                c_out = multiplier * config.channels
                self.down.append(
                    ResidualBlock(channels, c_out, width, resolution in config.attention)
                )
                channels = c_out
                skips.append(channels)
        self.middle = ResidualBlock(channels, channels, width, attention=True)
        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(config.multipliers))):
            for _ in range(config.blocks + 1):
                c_out = multiplier * config.channels
                self.up.append(
                    ResidualBlock(channels + skips.pop(), c_out, width,
                                  resolution in config.attention)
                )
                channels = c_out
            if level:
                self.up.append(nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"),
                                             nn.Conv2d(channels, channels, 3, padding=1)))
                resolution *= 2
        self.norm = GroupNorm(8, channels)
        self.leave = nn.Conv2d(channels, out_shape[0], 3, padding=1)

    def stages(self) -> list[nn.Module]:
        blocks = self.config.blocks  # and a convolution that leads to the next level
        return list(self.down[blocks - 1 :: blocks + 1])

    def condition(self, x: Tensor, time: Tensor | None, labels: Tensor | None) -> Tensor | None:
        return self.embed(time, labels) if self.embed is not None else None

    def encode(self, x: Tensor, condition: Tensor | None) -> list[Tensor]:
        # Convolutions are faster in this layout on CPUs and on tensor cores.
        h = self.enter(x.contiguous(memory_format=torch.channels_last))
        levels = [h]
        for layer in self.down:
            h = layer(h, condition) if isinstance(layer, ResidualBlock) else layer(h)
            levels.append(h)
        return levels

    def decode(self, levels: list[Tensor], condition: Tensor | None) -> Tensor:
        h = self.middle(levels[-1], condition)
        for layer in self.up:
            if isinstance(layer, ResidualBlock):
                h = layer(torch.cat([h, levels.pop()], dim=1), condition)
            else:
                h = layer(h)
        out: Tensor = self.leave(F.silu(self.norm(h)))
        return out.contiguous()
