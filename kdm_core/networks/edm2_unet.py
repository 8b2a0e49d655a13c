"""EDM2's magnitude-preserving U-Net (Karras et al. 2024, arXiv:2312.02696, configuration G).

Every layer keeps the expected magnitude of its input, so that neither activations nor weights
drift in training. Written after the paper; equation numbers are those of its arXiv version.
Parameters have the names that published checkpoints give them.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdm_core.compute import full_precision
from kdm_core.config import Config
from kdm_core.networks.base import Network, attention, one_hot
from kdm_core.networks.edm_blocks import check_shapes, count_heads, last_blocks

EPSILON = 1e-4
SILU_GAIN = 1 / 0.596  # makes the second moment of silu of a unit normal variable one

Balance = Annotated[float, Field(ge=0, le=1)]
Resample = Literal["keep", "down", "up"]


class EDM2UNetConfig(Config):
    """EDM2 U-Net with `blocks` residual blocks a level; the defaults are the paper's size S.

    A balance is the share of the second of two summands: 0 drops it, 1 drops the first.

    Attributes:
        channels: channels of the first level, before multiplication.
        multipliers: channels of each level, as multiples of `channels`; each level after the
            first halves the resolution.
        time_width: Fourier features of the time, as a multiple of `channels`; None for as many
            as the first level has channels.
        embedding: width of the embedding of time and label, as a multiple of `channels`; None
            for as many as the widest level has channels.
        blocks: residual blocks per level on the way down (one more on the way up).
        attention: resolutions (in pixels) at which blocks are followed by self-attention, which
            the innermost block of the decoder always is.
        label_balance: of the label against the time in their embedding.
        concat_balance: of a skip connection against the main path.
        res_balance: of a block's residual branch against its main path.
        attn_balance: of self-attention against the main path.
        clip_act: largest magnitude that leaves a block; None for no limit.
        channels_per_head: of self-attention, at least; a level with fewer channels has none.
        dropout: share of a residual branch's activations that training drops.
    """

    kind: Literal["edm2_unet"]
    channels: int = Field(192, ge=1, le=2**14)
    multipliers: list[Annotated[int, Field(ge=1, le=64)]] = Field(
        [1, 2, 3, 4], min_length=1, max_length=16)
    time_width: int | None = Field(None, ge=1, le=64)
    embedding: int | None = Field(None, ge=1, le=64)
    blocks: int = Field(3, ge=1)
    attention: list[int] = [16, 8]
    label_balance: Balance = 0.5
    concat_balance: Balance = 0.5
    res_balance: Balance = 0.3
    attn_balance: Balance = 0.3
    clip_act: float | None = Field(256.0, gt=0)
    channels_per_head: int = Field(64, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)


def normalize(x: Tensor, dims: list[int]) -> Tensor:
    """x with a root mean square of 1 over `dims` (eq. 47, 66), in x's dtype."""
    precise = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=precise)
    rms: Tensor = norm * math.sqrt(norm.numel() / x.numel())
    return x / (rms + EPSILON).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """SiLU that keeps the magnitude of a normal variable (eq. 81)."""
    return F.silu(x) * SILU_GAIN


def mp_sum(a: Tensor, b: Tensor, balance: float) -> Tensor:
    """The sum of two independent tensors of unit magnitude, of unit magnitude again (eq. 88)."""
    return a.lerp(b, balance) / math.hypot(1 - balance, balance)


def mp_cat(a: Tensor, b: Tensor, balance: float) -> Tensor:
    """Concatenated channels, each part contributing by its balance and not its size (eq. 103)."""
    total = math.sqrt(a.shape[1] + b.shape[1]) / math.hypot(1 - balance, balance)
    return torch.cat([a * (total * (1 - balance) / math.sqrt(a.shape[1])),
                      b * (total * balance / math.sqrt(b.shape[1]))], dim=1)


def resample(x: Tensor, mode: Resample) -> Tensor:
    """Halve (by averaging) or double (by repeating) the resolution, or keep it."""
    match mode:
        case "keep":
            return x
        case "down":
            return F.avg_pool2d(x, 2)
        case "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")


class MPFourier(nn.Module):
    """Random Fourier features of unit magnitude (eq. 75): times (B,) → (B, width)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(width))
        self.register_buffer("phases", 2 * math.pi * torch.rand(width))

    def forward(self, time: Tensor) -> Tensor:
        angles = torch.outer(time.to(torch.float32), self.freqs) + self.phases
        return angles.cos() * math.sqrt(2)


class MPConv(nn.Module):
    """A convolution, or without a kernel a linear map, with normalised weights and no bias.

    The weights of an output are divided by their norm where they are used (eq. 47); in training
    the stored ones are normalised as well (eq. 66), so that they cannot grow and thereby slow
    their own learning down.
    """

    def __init__(self, c_in: int, c_out: int, kernel: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in, *kernel))

    def forward(self, x: Tensor) -> Tensor:
        dims = list(range(1, self.weight.ndim))
        if self.training:
            # Through .data, since to autograd this is no change: a network that is applied
            # twice before the backward pass finds weights here that are normalised already.
            self.weight.data.copy_(normalize(self.weight.data, dims))
        weight = normalize(self.weight, dims) / math.sqrt(self.weight[0].numel())
        if weight.ndim == 2:
            return F.linear(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


class Block(nn.Module):
    """A residual block with optional self-attention (figure 21).

    Encoders' blocks normalise every pixel first; decoders' do not.
    """

    def __init__(
        self,
        config: EDM2UNetConfig,
        c_in: int,
        c_out: int,
        condition_width: int,
        *,
        decoder: bool,
        mode: Resample = "keep",
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.decoder, self.mode = config, decoder, mode
        self.heads = count_heads(c_out, config.channels_per_head) if attention else 0
        self.conv_res0 = MPConv(c_in if decoder else c_out, c_out, (3, 3))
        if condition_width:
            self.emb_gain = nn.Parameter(torch.zeros([]))
            self.emb_linear = MPConv(condition_width, c_out)
        self.conv_res1 = MPConv(c_out, c_out, (3, 3))
        self.conv_skip = MPConv(c_in, c_out, (1, 1)) if c_in != c_out else None
        if self.heads:
            self.attn_qkv = MPConv(c_out, 3 * c_out, (1, 1))
            self.attn_proj = MPConv(c_out, c_out, (1, 1))

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        c = self.config
        x = resample(x, self.mode)
        if self.conv_skip is not None and not self.decoder:
            x = self.conv_skip(x)
        if not self.decoder:
            x = normalize(x, [1])
        h = self.residual(x, condition)
        if self.conv_skip is not None and self.decoder:
            x = self.conv_skip(x)
        x = mp_sum(x, h, c.res_balance)
        if self.heads:
            x = mp_sum(x, self.attend(x), c.attn_balance)
        return x if c.clip_act is None else x.clamp(-c.clip_act, c.clip_act)

    def residual(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Two 3×3 convolutions; the condition scales what the second one sees."""
        h: Tensor = self.conv_res0(mp_silu(x))
        if condition is not None:
            scale = self.emb_linear(condition) * self.emb_gain + 1
            h = h * scale.to(h.dtype)[:, :, None, None]
        h = F.dropout(mp_silu(h), self.config.dropout, self.training)
        return self.conv_res1(h)  # type: ignore[no-any-return]

    def attend(self, x: Tensor) -> Tensor:
        """Cosine attention over all pixels: queries, keys and values have unit magnitude."""
        batch, channels, height, width = x.shape
        # Published weights order the rows of qkv by head, channel, and then query, key, value.
        qkv = self.attn_qkv(x).permute(0, 2, 3, 1).reshape(batch, height * width, self.heads, -1, 3)
        # Fused attention needs the channels of a head to lie side by side.
        q, k, v = normalize(qkv, [3]).permute(4, 0, 2, 1, 3).contiguous()
        h = attention(q, k, v).transpose(1, 2).reshape(batch, height, width, channels)
        return self.attn_proj(h.permute(0, 3, 1, 2))  # type: ignore[no-any-return]


class EDM2UNet(Network):
    """See `EDM2UNetConfig`. Maps (B, C, R, R) to (B, C', R, R); times are of order one."""

    def __init__(
        self,
        config: EDM2UNetConfig,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        timed: bool = False,
        num_classes: int = 0,
    ) -> None:
        """Build it with fresh weights; its gains start at zero, and so does its output.

        Raises:
            KDMError: it cannot map between these shapes, or its heads do not divide its channels.
        """
        super().__init__()
        check_shapes(config.kind, config.multipliers, in_shape, out_shape)
        self.config, self.timed, self.num_classes = config, timed, num_classes
        levels = [config.channels * multiplier for multiplier in config.multipliers]
        width = 0
        if timed or num_classes:
            width = config.channels * config.embedding if config.embedding else max(levels)
        if timed:
            time_width = config.channels * config.time_width if config.time_width else levels[0]
            self.emb_fourier = MPFourier(time_width)
            self.emb_noise = MPConv(time_width, width)
        if num_classes:
            self.emb_label = MPConv(num_classes, width)
        # One more channel than the images have, of ones, in place of biases.
        skips = self.build_encoder(levels, in_shape[0] + 1, in_shape[1], width)
        self.build_decoder(levels, skips, in_shape[1], width)
        self.out_conv = MPConv(levels[0], out_shape[0], (3, 3))
        self.out_gain = nn.Parameter(torch.zeros([]))

    def build_encoder(
        self, levels: list[int], c_in: int, resolution: int, width: int
    ) -> list[int]:
        """Fill `enc`; returns the channels of each of its outputs."""
        self.enc = nn.ModuleDict()
        channels, skips = levels[0], []
        for level, c_out in enumerate(levels):
            size = resolution >> level
            if level == 0:
                self.enc[f"{size}x{size}_conv"] = MPConv(c_in, c_out, (3, 3))
            else:
                self.enc[f"{size}x{size}_down"] = Block(
                    self.config, channels, channels, width, decoder=False, mode="down")
            skips.append(channels)
            for index in range(self.config.blocks):
                self.enc[f"{size}x{size}_block{index}"] = Block(
                    self.config, channels, c_out, width, decoder=False,
                    attention=size in self.config.attention)
                channels = c_out
                skips.append(channels)
        return skips

    def build_decoder(
        self, levels: list[int], skips: list[int], resolution: int, width: int
    ) -> None:
        """Fill `dec`, whose blocks other than the first of a level take the encoder's outputs."""
        self.dec = nn.ModuleDict()
        channels = levels[-1]
        for level, c_out in reversed(list(enumerate(levels))):
            size = resolution >> level
            if level == len(levels) - 1:
                self.dec[f"{size}x{size}_in0"] = Block(
                    self.config, channels, channels, width, decoder=True, attention=True)
                self.dec[f"{size}x{size}_in1"] = Block(
                    self.config, channels, channels, width, decoder=True)
            else:
                self.dec[f"{size}x{size}_up"] = Block(
                    self.config, channels, channels, width, decoder=True, mode="up")
            for index in range(self.config.blocks + 1):
                self.dec[f"{size}x{size}_block{index}"] = Block(
                    self.config, channels + skips.pop(), c_out, width, decoder=True,
                    attention=size in self.config.attention)
                channels = c_out

    def stages(self) -> list[nn.Module]:
        return last_blocks(self.enc, self.config.blocks)

    def class_weights(self) -> list[tuple[Tensor, int]]:
        return [(self.emb_label.weight, 1)] if self.num_classes else []

    def embed(self, batch: int, time: Tensor | None, labels: Tensor | None) -> Tensor | None:
        """The condition (B, width) of all blocks, or None if the network takes none."""
        parts = []
        if self.timed:
            assert time is not None, "this network takes a time"
            parts.append(self.emb_noise(self.emb_fourier(time)))
        if self.num_classes:
            rows = one_hot(labels, self.num_classes, batch, self.emb_label.weight)
            parts.append(self.emb_label(rows * math.sqrt(self.num_classes)))
        match parts:
            case [time_part, label_part]:
                return mp_silu(mp_sum(time_part, label_part, self.config.label_balance))
            case [part]:
                return mp_silu(part)
        return None

    def condition(self, x: Tensor, time: Tensor | None, labels: Tensor | None) -> Tensor | None:
        with full_precision(x.device):
            return self.embed(x.shape[0], time, labels)

    def encode(self, x: Tensor, condition: Tensor | None) -> list[Tensor]:
        h = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        # Convolutions are faster in this layout on CPUs and on tensor cores.
        h = h.contiguous(memory_format=torch.channels_last)
        levels = []
        for block in self.enc.values():
            h = block(h, condition) if isinstance(block, Block) else block(h)
            levels.append(h)
        return levels

    def decode(self, levels: list[Tensor], condition: Tensor | None) -> Tensor:
        h = levels[-1]
        for name, block in self.dec.items():
            if "block" in name:
                h = mp_cat(h, levels.pop(), self.config.concat_balance)
            h = block(h, condition)
        out: Tensor = self.out_conv(h) * self.out_gain
        return out.contiguous()
