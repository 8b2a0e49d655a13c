"""Networks that tell teacher samples from student samples (eq. 8)."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdm_core.errors import KDMError
from kdm_core.losses.features import FeatureNetwork
from kdm_core.losses.trunks import unit_length
from kdm_core.samples import SampleSpec

SMALLEST = 8
"""Side of the smallest image for the paper's convolutions, and of the largest map for a head."""
MIXING_SEED = 20_405
"""Random mixing is the same in every run, as frozen networks are: no state needs to hold it."""
FIRST_ITERATIONS = 15


def check_samples(spec: SampleSpec) -> None:
    """Make sure that the paper's discriminator can see samples of this kind and shape.

    Raises:
        KDMError: it cannot; the message starts with the parameter's name.
    """
    if not spec.spatial or min(spec.shape[1:]) < SMALLEST:
        raise KDMError(f"losses.adversarial: the discriminator needs images or latents of at least "
                       f"{SMALLEST}×{SMALLEST} values, found {spec.kind} of shape {spec.shape}; "
                       "set it to 0, or adversary.network to features, with those of the teacher")


class Critic(nn.Module, ABC):
    """Samples (B, *shape) → logits (B, heads), high for real ones.

    In two steps, since R1 penalises the gradient by what the trained part sees.
    """

    @abstractmethod
    def embed(self, samples: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        """What the trained part sees, each with the batch first; has no trainable parameters.

        `labels` (B,) int64 are there if samples have classes.
        """

    @abstractmethod
    def judge(self, embedded: list[Tensor]) -> Tensor:
        """Logits (B, heads)."""

    def forward(self, samples: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.judge(self.embed(samples, labels))


class Discriminator(Critic):
    """Convolutions down to 4×4 pixels, with at least three layers, then one to a single logit.

    At 32×32 these are the four layers of the published code (C → 64 → 128 → 256 → 1). Smaller
    images keep the four layers, of which fewer halve the resolution; larger ones get more.
    """

    def __init__(self, spec: SampleSpec, channels: int = 64, normalise: bool = True) -> None:
        super().__init__()
        check_samples(spec)
        layers: list[nn.Module] = []
        c_in = spec.shape[0]
        halvings = int(math.log2(min(spec.shape[1:]) // 4))
        for level in range(max(3, halvings)):
            c_out = channels * 2**level
            if level < halvings:
                layers.append(nn.Conv2d(c_in, c_out, 4, stride=2, padding=1))
            else:
                layers.append(nn.Conv2d(c_in, c_out, 3, padding=1))
            layers += [nn.BatchNorm2d(c_out)] if level and normalise else []
            layers += [nn.LeakyReLU(0.2)]
            c_in = c_out
        self.body = nn.Sequential(*layers, nn.Conv2d(c_in, 1, 4))

    def embed(self, samples: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        return [samples]

    def judge(self, embedded: list[Tensor]) -> Tensor:
        logits: Tensor = self.body(embedded[0]).flatten(1)
        return logits.mean(dim=1, keepdim=True)


class FeatureDiscriminator(Critic):
    """Heads on randomly mixed activations of frozen networks, one at each layer of each.

    Projected GANs (Sauer et al. 2021, arXiv:2111.01007), the discriminator of D2O (Zheng and Yang
    2024, arXiv:2405.20750).
    """

    def __init__(
        self,
        networks: Sequence[FeatureNetwork],
        shapes: Sequence[list[tuple[int, ...]]],
        channels: int = 64,
        normalise: bool = True,
    ) -> None:
        """`shapes`: of the layers of each network, as its `shapes` gives them."""
        super().__init__()
        generator = torch.Generator().manual_seed(MIXING_SEED)
        self.networks = nn.ModuleList(networks)
        self.mixing = nn.ModuleList(Mixing(each, generator) for each in shapes)
        self.heads = nn.ModuleList(
            head(width, min(size), channels, normalise)
            for mixing in self.mixing
            for width, *size in mixing.shapes)  # type: ignore[union-attr]

    def embed(self, samples: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        """Of each layer, the first network's first, (B, C, H, W)."""
        return [scale for network, mixing in zip(self.networks, self.mixing, strict=True)
                for scale in mixing(network(samples, labels))]

    def judge(self, embedded: list[Tensor]) -> Tensor:
        logits = [judging(scale).mean(dim=(1, 2, 3))
                  for judging, scale in zip(self.heads, embedded, strict=True)]
        return torch.stack(logits, dim=1)


class Mixing(nn.Module):
    """Random frozen mixing of one network's layers: of channels, then of scales from the last up.

    The channels of a layer, whose mean square is 1 at each pixel, are mixed to as many. To these
    is added, enlarged, what came out of the layer after it; the sum is mixed again, to as many
    channels as the layer before it has. With those of VGG16 these are the published widths (64,
    64, 128, 256). What comes out has the size of its own layer, not twice that. A vector (B, C)
    is a map of one pixel.

    Attributes:
        shapes: (C, H, W) of what comes out for each layer.
    """

    def __init__(self, shapes: list[tuple[int, ...]], generator: torch.Generator) -> None:
        super().__init__()
        widths = [shape[0] for shape in shapes]
        narrower = [widths[0], *widths[:-1]]
        self.channels = nn.ModuleList(
            RandomConvolution(width, width, generator) for width in widths)
        self.scales = nn.ModuleList(
            RandomConvolution(width, out, generator)
            for width, out in zip(widths, narrower, strict=True))
        self.shapes = [(out, *(shape[1:] or (1, 1)))
                       for out, shape in zip(narrower, shapes, strict=True)]

    def forward(self, layers: list[Tensor]) -> list[Tensor]:
        mixed: list[Tensor] = []
        for layer, channels, scale in reversed(
                list(zip(layers, self.channels, self.scales, strict=True))):
            maps = layer if layer.ndim == 4 else layer[:, :, None, None]
            own = channels(unit_length(maps) * maps.shape[1] ** 0.5)
            if mixed:
                own = (own + enlarged(mixed[-1], own)) / 2**0.5
            mixed.append(scale(own))
        return mixed[::-1]


def enlarged(maps: Tensor, like: Tensor) -> Tensor:
    """Maps (B, C, h, w) in the height and width of others, bilinear."""
    size = like.shape[2:]
    return maps if maps.shape[2:] == size else F.interpolate(maps, size, mode="bilinear")


class RandomConvolution(nn.Module):
    """A 1×1 convolution whose random weights, which are no state, keep the mean square."""

    weight: Tensor

    def __init__(self, c_in: int, c_out: int, generator: torch.Generator) -> None:
        super().__init__()
        # Drawn on the CPU, and so the same on every device.
        weight = torch.randn(c_out, c_in, 1, 1, generator=generator, device="cpu") / c_in**0.5
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight)


class SpectralConv2d(nn.Conv2d):
    """A convolution whose kernel, as a matrix (C_out, C_in · k²), has spectral norm 1.

    Miyato et al. 2018 (arXiv:1802.05957): each call makes one step of the power iteration, which
    those in training keep. The norm is taken in float32, whatever autocast says.
    """

    left: Tensor

    def __init__(self, c_in: int, c_out: int, size: int, *, stride: int = 1, padding: int = 0,
                 bias: bool = True) -> None:
        super().__init__(c_in, c_out, size, stride, padding, bias=bias)
        self.register_buffer("left", F.normalize(torch.randn(c_out), dim=0))
        for _ in range(FIRST_ITERATIONS):
            self.spectral_norm()

    def spectral_norm(self) -> Tensor:
        """An estimate from below, by which gradients flow as if singular vectors were fixed."""
        matrix = self.weight.flatten(1)
        with torch.no_grad():
            right = F.normalize(self.left @ matrix, dim=0)
            left = F.normalize(matrix @ right, dim=0)
            if self.training:
                self.left.copy_(left)
        return left @ matrix @ right

    def forward(self, input: Tensor) -> Tensor:  # torch's name
        with torch.autocast(input.device.type, enabled=False):
            weight = self.weight / self.spectral_norm()
        convolved: Tensor = self._conv_forward(input, weight, self.bias)
        return convolved


def head(c_in: int, side: int, channels: int, normalise: bool) -> nn.Sequential:
    """Maps (B, C_in, H, W) → logits (B, 1, h, w), with spectral norms.

    As published, convolutions of 4×4 halve a map until its shorter side is at most 8 pixels, and
    the last one is of 4×4. A map that is small from the start has one of 3×3 that keeps its size,
    and one of fewer pixels than 4×4 a last one of its own size. Batch normalisation, if asked for,
    is left out at single pixels, whose statistics would be those of a few samples.
    """
    halvings = max(0, math.ceil(math.log2(side / SMALLEST)))
    kept = 3 if side > 1 else 1
    layers: list[nn.Module] = []
    for _ in range(max(1, halvings)):
        norms = normalise and side > 1
        kernel, stride = (4, 2) if halvings else (kept, 1)
        layers.append(SpectralConv2d(c_in, channels, kernel, stride=stride,
                                     padding=(kernel - 1) // 2, bias=not norms))
        layers += [nn.BatchNorm2d(channels)] if norms else []
        layers.append(nn.LeakyReLU(0.2))
        c_in, side = channels, side // stride
    return nn.Sequential(*layers, SpectralConv2d(c_in, 1, min(4, side)))
