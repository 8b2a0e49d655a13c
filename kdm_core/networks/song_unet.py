"""DDPM++ and NCSN++: the U-Nets of Song et al. 2021 (arXiv:2011.13456) as EDM trains them.

After appendix F and table 7 of Karras et al. 2022 (arXiv:2206.00364). The defaults are DDPM++;
NCSN++ has time_embedding fourier, time_width 2, encoder residual, resample binomial.
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
    Filter,
    FourierEmbedding,
    Init,
    PositionalEmbedding,
    Resample,
    ShrinkingConv,
    UNetBlock,
    check_shapes,
    conv,
    group_norm,
    last_blocks,
    linear,
)

INIT = Init("xavier_uniform")
INIT_LAST = Init("xavier_uniform", weight=1e-5)
INIT_ATTENTION = Init("xavier_uniform", weight=math.sqrt(0.2))
SKIP_SCALE = math.sqrt(0.5)
EPS = 1e-6


class SongUNetConfig(Config):
    """U-Net with `blocks` residual blocks a level.

    Attributes:
        channels: channels of the first convolution.
        multipliers: channels of each level, as multiples of `channels`; each level after the
            first halves the resolution.
        embedding: width of the embedding of the conditions, as a multiple of `channels`.
        blocks: residual blocks per level on the way down (one more on the way up).
        attention: resolutions (in pixels) at which the encoder's blocks, and the last block of
            the decoder, have self-attention; the innermost block always has.
        dropout: share of a residual branch's activations that training drops.
        time_embedding: fixed geometric frequencies, or random ones.
        time_width: features of the time, as a multiple of `channels`.
        encoder: whether downsampled inputs are added to each level: not at all, as such (skip), or
            as a sum that is carried along (residual).
        decoder: whether the output is that of the last level, or the sum of all levels' (skip).
        resample: the filter of resampling, [1, 1] or [1, 3, 3, 1].
        augment_dim: width of augmentation labels, 0 for none.
    """

    kind: Literal["song_unet"]
    channels: int = Field(128, ge=4, le=2**14, multiple_of=4)
    multipliers: list[Annotated[int, Field(ge=1, le=64)]] = Field(
        [1, 2, 2, 2], min_length=1, max_length=12)
    embedding: int = Field(4, ge=1, le=64)
    blocks: int = Field(4, ge=1, le=64)
    attention: list[int] = [16]
    dropout: float = Field(0.10, ge=0, lt=1)
    time_embedding: Literal["positional", "fourier"] = "positional"
    time_width: int = Field(1, ge=1, le=64)
    encoder: Literal["standard", "skip", "residual"] = "standard"
    decoder: Literal["standard", "skip"] = "standard"
    resample: Filter = "box"
    augment_dim: int = Field(0, ge=0, le=2**14)


class SongUNet(AugmentedUNet):
    """See `SongUNetConfig`. Maps (B, C, R, R) to (B, C', R, R)."""

    def __init__(
        self,
        config: SongUNetConfig,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        timed: bool = False,
        num_classes: int = 0,
    ) -> None:
        """Build it with fresh weights; its output starts near zero.

        Raises:
            KDMError: it cannot map between these shapes, or its channels cannot be normalised.
        """
        super().__init__()
        check_shapes(config.kind, config.multipliers, in_shape, out_shape)
        self.config, self.timed, self.num_classes = config, timed, num_classes
        self.conditioned = timed or num_classes > 0 or config.augment_dim > 0
        width = config.channels * config.embedding if self.conditioned else 0
        if self.conditioned:
            self.build_embedding(width)
        style = BlockStyle(
            condition_width=width, channels_per_head=None, dropout=config.dropout,
            skip_scale=SKIP_SCALE, eps=EPS, filter=config.resample, project=True, scaled=False,
            init=INIT, init_last=INIT_LAST, init_attention=INIT_ATTENTION)
        skips = self.build_encoder(in_shape[0], in_shape[1], style)
        self.build_decoder(out_shape[0], in_shape[1], skips, style)

    def build_embedding(self, width: int) -> None:
        c = self.config
        features = self.features = c.channels * c.time_width
        if self.timed:
            self.map_noise = (PositionalEmbedding(features, endpoint=True)
                              if c.time_embedding == "positional" else FourierEmbedding(features))
        if self.num_classes:
            self.map_label = linear(self.num_classes, features, INIT)
        if c.augment_dim:
            self.map_augment = linear(c.augment_dim, features, INIT, bias=False)
        self.map_layer0 = linear(features, width, INIT)
        self.map_layer1 = linear(width, width, INIT)

    def build_encoder(self, c_in: int, resolution: int, style: BlockStyle) -> list[int]:
        """Fill `enc`; returns the channels of each of its outputs."""
        c, self.enc = self.config, nn.ModuleDict()
        channels = c.channels
        carried = c_in
        skips = []
        for level, multiplier in enumerate(c.multipliers):
            size = resolution >> level
            name = f"{size}x{size}"
            if level == 0:
                self.enc[f"{name}_conv"] = conv(c_in, channels, 3, INIT)
            else:
                self.enc[f"{name}_down"] = UNetBlock(channels, channels, style, "down")
                if c.encoder == "skip":
                    self.enc[f"{name}_aux_down"] = Resample("down", c.resample)
                    self.enc[f"{name}_aux_skip"] = conv(c_in, channels, 1, INIT)
                if c.encoder == "residual":
                    self.enc[f"{name}_aux_residual"] = ShrinkingConv(
                        carried, channels, c.resample, INIT)
                    carried = channels
            skips.append(channels)
            for index in range(c.blocks):
                c_out = multiplier * c.channels
                self.enc[f"{name}_block{index}"] = UNetBlock(
                    channels, c_out, style, attention=size in c.attention)
                channels = c_out
                skips.append(channels)
        return skips

    def build_decoder(
        self, c_out: int, resolution: int, skips: list[int], style: BlockStyle
    ) -> None:
        """Fill `dec`, whose blocks other than the first of a level take the encoder's outputs."""
        c, self.dec = self.config, nn.ModuleDict()
        channels, deepest = skips[-1], len(c.multipliers) - 1
        for level, multiplier in reversed(list(enumerate(c.multipliers))):
            size = resolution >> level
            name = f"{size}x{size}"
            if level == deepest:
                self.dec[f"{name}_in0"] = UNetBlock(channels, channels, style, attention=True)
                self.dec[f"{name}_in1"] = UNetBlock(channels, channels, style)
            else:
                self.dec[f"{name}_up"] = UNetBlock(channels, channels, style, "up")
            for index in range(c.blocks + 1):
                last = index == c.blocks
                self.dec[f"{name}_block{index}"] = UNetBlock(
                    channels + skips.pop(), multiplier * c.channels, style,
                    attention=last and size in c.attention)
                channels = multiplier * c.channels
            if c.decoder == "skip" and level < deepest:
                self.dec[f"{name}_aux_up"] = Resample("up", c.resample)
            if c.decoder == "skip" or level == 0:
                self.dec[f"{name}_aux_norm"] = group_norm(channels, EPS)
                self.dec[f"{name}_aux_conv"] = conv(channels, c_out, 3, INIT_LAST)

    def stages(self) -> list[nn.Module]:
        return last_blocks(self.enc, self.config.blocks)

    def class_weights(self) -> list[tuple[Tensor, int]]:
        return [(self.map_label.weight, 1)] if self.num_classes else []

    def embed(
        self, batch: int, time: Tensor | None, labels: Tensor | None, augment: Tensor | None
    ) -> Tensor:
        """The condition (B, width) of all blocks."""
        weight = self.map_layer0.weight
        h = weight.new_zeros(batch, self.features)
        if self.timed:
            assert time is not None, "this network takes a time"
            cosines, sines = self.map_noise(time)
            h = torch.cat([sines, cosines], dim=1)
        if self.num_classes:
            rows = one_hot(labels, self.num_classes, batch, weight)
            h = h + self.map_label(rows * math.sqrt(self.num_classes))
        if self.config.augment_dim and augment is not None:
            h = h + self.map_augment(augment.to(weight.dtype))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(h))))

    def encode(self, x: Tensor, condition: Tensor | None) -> list[Tensor]:
        # Convolutions are faster in this layout on CPUs and on tensor cores.
        carried = x = x.contiguous(memory_format=torch.channels_last)
        skips: list[Tensor] = []
        for name, layer in self.enc.items():
            match name.partition("_")[2]:
                case "conv":
                    skips.append(layer(x))
                case "aux_down":
                    carried = layer(carried)
                case "aux_skip":
                    skips[-1] = skips[-1] + layer(carried)
                case "aux_residual":
                    skips[-1] = carried = (skips[-1] + layer(carried)) * SKIP_SCALE
                case _:
                    skips.append(layer(skips[-1], condition))
        return skips

    def decode(self, levels: list[Tensor], condition: Tensor | None) -> Tensor:
        h = normalised = levels[-1]
        output: Tensor | None = None
        for name, layer in self.dec.items():
            part = name.partition("_")[2]
            if part == "aux_up":
                output = layer(output)
            elif part == "aux_norm":
                normalised = layer(h)
            elif part == "aux_conv":
                term = layer(F.silu(normalised))
                output = term if output is None else output + term
            else:
                if part.startswith("block"):
                    h = torch.cat([h, levels.pop()], dim=1)
                h = layer(h, condition)
        assert output is not None
        return output.contiguous()
