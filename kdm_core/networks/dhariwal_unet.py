"""ADM: the U-Net of Dhariwal and Nichol 2021 (arXiv:2105.05233) as EDM trains it.

After appendix F and table 7 of Karras et al. 2022 (arXiv:2206.00364).
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdm_core.config import Config
from kdm_core.networks.base import one_hot
from kdm_core.networks.edm_blocks import (
    AugmentedUNet,
    BlockStyle,
    Init,
    PositionalEmbedding,
    UNetBlock,
    check_shapes,
    conv,
    group_norm,
    last_blocks,
    linear,
)

INIT = Init("kaiming_uniform", weight=math.sqrt(1 / 3), bias=math.sqrt(1 / 3))
INIT_LAST = Init("kaiming_uniform", weight=0.0)
EPS = 1e-5


class DhariwalUNetConfig(Config):
    """U-Net with `blocks` residual blocks a level; the defaults are those of ImageNet-64.

    Attributes:
        channels: channels of the first level, before multiplication.
        multipliers: channels of each level, as multiples of `channels`; each level after the
            first halves the resolution.
        embedding: width of the embedding of the conditions, as a multiple of `channels`.
        blocks: residual blocks per level on the way down (one more on the way up).
        attention: resolutions (in pixels) at which blocks have self-attention, with heads of 64
            channels; the innermost block always has.
        dropout: share of a residual branch's activations that training drops.
        augment_dim: width of augmentation labels, 0 for none.
    """

    kind: Literal["dhariwal_unet"]
    channels: int = Field(192, ge=4, le=2**14, multiple_of=4)
    multipliers: list[Annotated[int, Field(ge=1, le=64)]] = Field(
        [1, 2, 3, 4], min_length=1, max_length=12)
    embedding: int = Field(4, ge=1, le=64)
    blocks: int = Field(3, ge=1, le=64)
    attention: list[int] = [32, 16, 8]
    dropout: float = Field(0.10, ge=0, lt=1)
    augment_dim: int = Field(0, ge=0, le=2**14)


class DhariwalUNet(AugmentedUNet):
    """See `DhariwalUNetConfig`. Maps (B, C, R, R) to (B, C', R, R)."""

    def __init__(
        self,
        config: DhariwalUNetConfig,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        timed: bool = False,
        num_classes: int = 0,
    ) -> None:
        """Build it with fresh weights; its output starts at zero.

        Raises:
            KDMError: it cannot map between these shapes, or its channels cannot be normalised or
                divided between heads.
        """
        super().__init__()
        check_shapes(config.kind, config.multipliers, in_shape, out_shape)
        self.config, self.timed, self.num_classes = config, timed, num_classes
        self.conditioned = timed or num_classes > 0 or config.augment_dim > 0
        width = config.channels * config.embedding if self.conditioned else 0
        if self.conditioned:
            self.build_embedding(width)
        style = BlockStyle(
            condition_width=width, channels_per_head=64, dropout=config.dropout, skip_scale=1.0,
            eps=EPS, filter="box", project=False, scaled=True, init=INIT, init_last=INIT_LAST,
            init_attention=INIT)
        skips = self.build_encoder(in_shape[0], in_shape[1], style)
        channels = self.build_decoder(in_shape[1], skips, style)
        self.out_norm = group_norm(channels, EPS)
        self.out_conv = conv(channels, out_shape[0], 3, INIT_LAST)

    def build_embedding(self, width: int) -> None:
        c = self.config
        if self.timed:
            self.map_noise = PositionalEmbedding(c.channels, endpoint=False)
        if c.augment_dim:
            self.map_augment = linear(c.augment_dim, c.channels, INIT_LAST, bias=False)
        if self.timed or c.augment_dim:
            self.map_layer0 = linear(c.channels, width, INIT)
            self.map_layer1 = linear(width, width, INIT)
        if self.num_classes:
            init = Init("kaiming_normal", weight=math.sqrt(self.num_classes))
            self.map_label = linear(self.num_classes, width, init, bias=False)

    def build_encoder(self, c_in: int, resolution: int, style: BlockStyle) -> list[int]:
        """Fill `enc`; returns the channels of each of its outputs."""
        c, self.enc = self.config, nn.ModuleDict()
        channels = c.multipliers[0] * c.channels
        skips = []
        for level, multiplier in enumerate(c.multipliers):
            size = resolution >> level
            name = f"{size}x{size}"
            if level == 0:
                self.enc[f"{name}_conv"] = conv(c_in, channels, 3, INIT)
            else:
                self.enc[f"{name}_down"] = UNetBlock(channels, channels, style, "down")
            skips.append(channels)
            for index in range(c.blocks):
                c_out = multiplier * c.channels
                self.enc[f"{name}_block{index}"] = UNetBlock(
                    channels, c_out, style, attention=size in c.attention)
                channels = c_out
                skips.append(channels)
        return skips

    def build_decoder(self, resolution: int, skips: list[int], style: BlockStyle) -> int:
        """Fill `dec`, whose blocks other than the first of a level take the encoder's outputs;
        returns the channels of its own output."""
        c, self.dec = self.config, nn.ModuleDict()
        channels = skips[-1]
        for level, multiplier in reversed(list(enumerate(c.multipliers))):
            size = resolution >> level
            name = f"{size}x{size}"
            if level == len(c.multipliers) - 1:
                self.dec[f"{name}_in0"] = UNetBlock(channels, channels, style, attention=True)
                self.dec[f"{name}_in1"] = UNetBlock(channels, channels, style)
            else:
                self.dec[f"{name}_up"] = UNetBlock(channels, channels, style, "up")
            for index in range(c.blocks + 1):
                self.dec[f"{name}_block{index}"] = UNetBlock(
                    channels + skips.pop(), multiplier * c.channels, style,
                    attention=size in c.attention)
                channels = multiplier * c.channels
        return channels

    def stages(self) -> list[nn.Module]:
        return last_blocks(self.enc, self.config.blocks)

    def class_weights(self) -> list[tuple[Tensor, int]]:
        return [(self.map_label.weight, 1)] if self.num_classes else []

    def embed(
        self, batch: int, time: Tensor | None, labels: Tensor | None, augment: Tensor | None
    ) -> Tensor:
        """The condition (B, width) of all blocks."""
        weight = self.out_conv.weight  # of the dtype and device of all
        parts = []
        if self.timed or self.config.augment_dim:
            h = weight.new_zeros(batch, self.config.channels)
            if self.timed:
                assert time is not None, "this network takes a time"
                h = torch.cat(self.map_noise(time), dim=1)
            if self.config.augment_dim and augment is not None:
                h = h + self.map_augment(augment.to(weight.dtype))
            parts.append(self.map_layer1(F.silu(self.map_layer0(h))))
        if self.num_classes:
            parts.append(self.map_label(one_hot(labels, self.num_classes, batch, weight)))
        return F.silu(torch.stack(parts).sum(dim=0))

    def encode(self, x: Tensor, condition: Tensor | None) -> list[Tensor]:
        # Convolutions are faster in this layout on CPUs and on tensor cores.
        h = x.contiguous(memory_format=torch.channels_last)
        levels = []
        for layer in self.enc.values():
            h = layer(h, condition) if isinstance(layer, UNetBlock) else layer(h)
            levels.append(h)
        return levels

    def decode(self, levels: list[Tensor], condition: Tensor | None) -> Tensor:
        h = levels[-1]
        for name, layer in self.dec.items():
            if "block" in name:
                h = torch.cat([h, levels.pop()], dim=1)
            h = layer(h, condition)
        out: Tensor = self.out_conv(F.silu(self.out_norm(h)))
        return out.contiguous()
