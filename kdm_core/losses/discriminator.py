"""Networks that tell teacher samples from student samples (eq. 8)."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from kdm_core.errors import KDMError
from kdm_core.losses.trunks import Trunk, unit_length
from kdm_core.samples import SampleSpec

SMALLEST = 8
FEATURE_RESOLUTION = 32


def check_samples(spec: SampleSpec, features: bool) -> None:
    """Make sure that there is a discriminator for samples of this kind and shape.

    Raises:
        KDMError: there is none; the message starts with the parameter's name.
    """
    if spec.kind != "image" or min(spec.shape[1:]) < SMALLEST:
        raise KDMError(f"losses.adversarial: the discriminator needs images of at least "
                       f"{SMALLEST}×{SMALLEST} pixels, found {spec.kind} of shape {spec.shape}; "
                       "set it to 0")
    if features and spec.shape[0] not in (1, 3):
        raise KDMError("losses.adversary.network: features are those of images of 1 or 3 channels, "
                       f"found {spec.shape[0]}; use paper")


class Critic(nn.Module, ABC):
    """Images (B, C, H, W) → logits (B, heads), high for the teacher's.

    In two steps, since R1 penalises the gradient by what the trained part sees.
    """

    @abstractmethod
    def embed(self, images: Tensor) -> list[Tensor]:
        """What the trained part sees; has no trainable parameters."""

    @abstractmethod
    def judge(self, embedded: list[Tensor]) -> Tensor:
        """Logits (B, heads)."""

    def forward(self, images: Tensor) -> Tensor:
        return self.judge(self.embed(images))


class Discriminator(Critic):
    """Convolutions down to 4×4 pixels, with at least three layers, then one to a single logit.

    At 32×32 these are the four layers of the published code (C → 64 → 128 → 256 → 1). Smaller
    images keep the four layers, of which fewer halve the resolution; larger ones get more.
    """

    def __init__(self, spec: SampleSpec, channels: int = 64, normalise: bool = True) -> None:
        super().__init__()
        check_samples(spec, features=False)
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

    def embed(self, images: Tensor) -> list[Tensor]:
        return [images]

    def judge(self, embedded: list[Tensor]) -> Tensor:
        logits: Tensor = self.body(embedded[0]).flatten(1)
        return logits.mean(dim=1, keepdim=True)


class FeatureDiscriminator(Critic):
    """One small convolutional head on each block of a frozen VGG16.

    Projected GANs (Sauer et al. 2021, arXiv:2111.01007) with the heads of StyleGAN-T (Sauer et al.
    2023, arXiv:2301.09515) in small. Activations come with unit mean square at each pixel.
    """

    def __init__(self, spec: SampleSpec, channels: int = 64) -> None:
        super().__init__()
        check_samples(spec, features=True)
        self.trunk = Trunk("vgg", resolution=FEATURE_RESOLUTION)
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(len(weights), channels, 1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(channels, 1, 1),
            )
            for weights in self.trunk.calibration
        )

    def embed(self, images: Tensor) -> list[Tensor]:
        return [unit_length(layer) * layer.shape[1] ** 0.5 for layer in self.trunk(images)]

    def judge(self, embedded: list[Tensor]) -> Tensor:
        logits = [head(layer).mean(dim=(1, 2, 3))
                  for head, layer in zip(self.heads, embedded, strict=True)]
        return torch.stack(logits, dim=1)
