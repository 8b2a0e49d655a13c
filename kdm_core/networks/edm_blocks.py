"""What EDM's two U-Nets share: conditions, blocks, resampling, embeddings of time, initial weights.

Written after appendix F of Karras et al. 2022 (arXiv:2206.00364) and the papers named there. The
parameters have the names that published checkpoints give them.
"""

import math
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdm_core.compute import full_precision
from kdm_core.errors import KDMError
from kdm_core.networks.base import GroupNorm, Network, attention, dropout

Filter = Literal["box", "binomial"]
Direction = Literal["up", "down"]
Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


class Init(NamedTuple):
    """The distribution of initial weights and biases, and factors for both."""

    distribution: Literal["xavier_uniform", "kaiming_uniform", "kaiming_normal"]
    weight: float = 1.0
    bias: float = 0.0


def initialise(layer: Layer, init: Init) -> Layer:
    """Give a layer fresh weights; fans count the kernel's elements."""
    area = layer.weight[0, 0].numel()
    fan_in, fan_out = layer.weight.shape[1] * area, layer.weight.shape[0] * area

    def fill(values: Tensor, factor: float) -> None:
        match init.distribution:
            case "xavier_uniform":
                nn.init.uniform_(values, -1, 1).mul_(factor * math.sqrt(6 / (fan_in + fan_out)))
            case "kaiming_uniform":
                nn.init.uniform_(values, -1, 1).mul_(factor * math.sqrt(3 / fan_in))
            case "kaiming_normal":
                nn.init.normal_(values).mul_(factor * math.sqrt(1 / fan_in))

    with torch.no_grad():
        fill(layer.weight, init.weight)
        if layer.bias is not None:
            fill(layer.bias, init.bias)
    return layer


def linear(c_in: int, c_out: int, init: Init, bias: bool = True) -> nn.Linear:
    return initialise(nn.Linear(c_in, c_out, bias=bias), init)


def conv(c_in: int, c_out: int, kernel: int, init: Init) -> nn.Conv2d:
    """A convolution that keeps height and width."""
    return initialise(nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2), init)


def group_norm(channels: int, eps: float) -> GroupNorm:
    """At most 32 groups, of at least 4 channels each.

    Raises:
        KDMError: the channels cannot be divided between the groups.
    """
    groups = min(32, channels // 4)
    if groups == 0 or channels % groups:
        raise KDMError(f"network.channels: a layer of {channels} channels cannot be normalised in "
                       f"{groups} groups; choose a multiple of 32")
    return GroupNorm(groups, channels, eps=eps)


# Resampling


class Resample(nn.Module):
    """Twice or half the height and width: (B, C, H, W) → (B, C, 2H, 2W) or (B, C, H/2, W/2).

    The box filter is [1, 1] in each dimension, the binomial one [1, 3, 3, 1]; images are taken to
    be zero beyond their edges.
    """

    kernel: Tensor

    def __init__(self, direction: Direction, filter: Filter) -> None:
        super().__init__()
        self.direction, self.filter = direction, filter
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", torch.outer(taps, taps)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        match self.direction, self.filter:
            case "down", "box":
                return F.avg_pool2d(x, 2)
            case "down", _:
                return self.shrink(x, padding=1)
            case "up", "box":
                return F.interpolate(x, scale_factor=2.0, mode="nearest")
        # The binomial filter is bilinear interpolation between pixels, the outermost of which
        # are zero; as such it is several times faster than a transposed convolution.
        grown = F.interpolate(F.pad(x, (1, 1, 1, 1)), scale_factor=2.0, mode="bilinear")
        return grown[:, :, 2:-2, 2:-2]

    def shrink(self, x: Tensor, padding: int) -> Tensor:
        """Downsampling by the binomial filter."""
        kernel = self.kernel.expand(x.shape[1], -1, -1, -1)
        return F.conv2d(x, kernel, stride=2, padding=padding, groups=x.shape[1])


class ShrinkingConv(nn.Conv2d):
    """A 3×3 convolution of an image that is padded for the filter too, and then downsampled."""

    def __init__(self, c_in: int, c_out: int, filter: Filter, init: Init) -> None:
        super().__init__(c_in, c_out, 3, padding=1 if filter == "box" else 2)
        self.resample = Resample("down", filter)
        initialise(self, init)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if self.resample.filter == "box":
            return self.resample(x)  # type: ignore[no-any-return]
        return self.resample.shrink(x, padding=0)


# Blocks


class BlockStyle(NamedTuple):
    """In what the blocks of DDPM++, NCSN++ and ADM differ.

    Attributes:
        condition_width: width of the condition, 0 for none.
        channels_per_head: of self-attention; None for a single head.
        dropout: share of activations that training drops.
        skip_scale: factor of every sum with a skip connection.
        eps: of the normalisation.
        filter: of resampling.
        project: whether a skip connection that is resampled is also projected.
        scaled: whether the condition scales, as well as shifts, the activations.
        init, init_last, init_attention: initial weights; `init_last` ends each residual branch.
    """

    condition_width: int
    channels_per_head: int | None
    dropout: float
    skip_scale: float
    eps: float
    filter: Filter
    project: bool
    scaled: bool
    init: Init
    init_last: Init
    init_attention: Init


class UNetBlock(nn.Module):
    """A residual block with optional resampling and self-attention."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        style: BlockStyle,
        direction: Direction | None = None,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.style = style
        self.resample = Resample(direction, style.filter) if direction else nn.Identity()
        self.norm0 = group_norm(c_in, style.eps)
        self.conv0 = conv(c_in, c_out, 3, style.init)
        self.affine = None
        if style.condition_width:
            width = c_out * (2 if style.scaled else 1)
            self.affine = linear(style.condition_width, width, style.init)
        self.norm1 = group_norm(c_out, style.eps)
        self.conv1 = conv(c_out, c_out, 3, style.init_last)
        projected = c_in != c_out or (style.project and direction is not None)
        self.skip = conv(c_in, c_out, 1, style.init) if projected else nn.Identity()
        self.heads = count_heads(c_out, style.channels_per_head) if attention else 0
        if self.heads:
            self.norm2 = group_norm(c_out, style.eps)
            self.qkv = conv(c_out, 3 * c_out, 1, style.init_attention)
            self.proj = conv(c_out, c_out, 1, style.init_last)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """(B, C, H, W) and the condition (B, width) → (B, C', H', W')."""
        h: Tensor = self.conv0(self.resample(F.silu(self.norm0(x))))
        h = F.silu(self.modulate(h, condition))
        h = self.conv1(dropout(h, self.style.dropout, self.training))
        h = (h + self.skip(self.resample(x))) * self.style.skip_scale
        if self.heads:
            h = (h + self.attend(h)) * self.style.skip_scale
        return h

    def modulate(self, h: Tensor, condition: Tensor | None) -> Tensor:
        """Normalise, and shift before or scale and shift after that by the condition."""
        if self.affine is None:
            return self.norm1(h)  # type: ignore[no-any-return]
        shift = self.affine(condition)[:, :, None, None].to(h.dtype)
        if not self.style.scaled:
            return self.norm1(h + shift)  # type: ignore[no-any-return]
        scale, shift = shift.chunk(2, dim=1)
        return torch.addcmul(shift, self.norm1(h), scale + 1)

    def attend(self, x: Tensor) -> Tensor:
        """Attention over all pixels."""
        batch, channels, height, width = x.shape
        # Published weights order the rows of qkv by head, channel, and then query, key, value. To
        # sort the weights is cheaper than to sort the activations.
        weight = self.qkv.weight.reshape(channels, 3, channels, 1, 1).transpose(0, 1).flatten(0, 1)
        assert self.qkv.bias is not None
        bias = self.qkv.bias.reshape(channels, 3).t().flatten()
        qkv = F.conv2d(self.norm2(x), weight, bias).permute(0, 2, 3, 1)
        heads = qkv.reshape(batch, height * width, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        h = attention(*heads)
        pixels = h.transpose(1, 2).reshape(batch, height, width, channels)
        return self.proj(pixels.permute(0, 3, 1, 2))  # type: ignore[no-any-return]


def count_heads(channels: int, channels_per_head: int | None) -> int:
    """Attention heads of a level; as in ADM, levels narrower than one head have no attention.

    Raises:
        KDMError: the channels cannot be divided between the heads.
    """
    heads = channels // channels_per_head if channels_per_head else 1
    if heads and channels % heads:
        raise KDMError(f"network.channels: {channels} channels cannot be divided between {heads} "
                       f"attention heads; choose a multiple of {channels_per_head}")
    return heads


# Conditions


class PositionalEmbedding(nn.Module):
    """Sines and cosines of geometrically spaced frequencies 1 … 1/10000: (B,) → (B, width).

    With `endpoint` the lowest frequency is 1/10000, otherwise it is one step above.
    """

    freqs: Tensor

    def __init__(self, width: int, endpoint: bool) -> None:
        super().__init__()
        self.endpoint = endpoint
        # In float32 as published: times reach 999, which magnifies differences of rounding.
        steps = torch.arange(width // 2, dtype=torch.float32) / (width // 2 - int(endpoint))
        self.register_buffer("freqs", (1 / 10000) ** steps, persistent=False)

    def forward(self, time: Tensor) -> tuple[Tensor, Tensor]:
        angles = time.to(torch.float32)[:, None] * self.freqs
        return angles.cos(), angles.sin()


class FourierEmbedding(nn.Module):
    """Cosines and sines of random frequencies: (B,) → twice (B, width / 2)."""

    freqs: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(width // 2) * 16)

    def forward(self, time: Tensor) -> tuple[Tensor, Tensor]:
        angles = time.to(torch.float32)[:, None] * (2 * math.pi * self.freqs)
        return angles.cos(), angles.sin()


# Layers


class AugmentedUNet(Network):
    """A network that takes augmentation labels beside time and labels.

    Attributes:
        conditioned: whether it takes any of them.
    """

    conditioned: bool

    def embed(
        self, batch: int, time: Tensor | None, labels: Tensor | None, augment: Tensor | None
    ) -> Tensor:
        """The condition (B, width) of all blocks."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        time: Tensor | None = None,
        labels: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        condition = self.condition(x, time, labels, augment)
        return self.decode(self.encode(x, condition), condition)

    def condition(
        self, x: Tensor, time: Tensor | None, labels: Tensor | None, augment: Tensor | None = None
    ) -> Tensor | None:
        if not self.conditioned:
            return None
        # Times reach 999, of which half precision keeps two or three digits.
        with full_precision(x.device):
            return self.embed(x.shape[0], time, labels, augment)


def last_blocks(encoder: nn.ModuleDict, blocks: int) -> list[nn.Module]:
    """The last of an encoder's `blocks` at each resolution, from the first."""
    return [layer for name, layer in encoder.items() if name.endswith(f"_block{blocks - 1}")]


# Shapes


def check_shapes(
    kind: str, multipliers: list[int], in_shape: tuple[int, ...], out_shape: tuple[int, ...]
) -> None:
    """Refuse what these networks cannot map.

    Raises:
        KDMError: these are no square images of one size, or they cannot be halved often enough.
    """
    if len(in_shape) != 3 or len(out_shape) != 3 or in_shape[1:] != out_shape[1:]:
        raise KDMError(f"network.kind: a {kind} keeps height and width, but is asked to map "
                       f"{in_shape} to {out_shape}; use kind: mlp")
    if in_shape[1] != in_shape[2]:
        raise KDMError(f"network.kind: a {kind} takes square images, found {in_shape[1:]}; "
                       "use kind: unet")
    factor = 2 ** (len(multipliers) - 1)
    if in_shape[1] % factor:
        raise KDMError(f"network.multipliers: {len(multipliers)} levels need a resolution "
                       f"divisible by {factor}, found {in_shape[1]}")
