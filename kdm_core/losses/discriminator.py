"""The adversary of eq. 8: a few convolutions that tell teacher samples from student samples."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdm_core.errors import KDMError
from kdm_core.samples import SampleSpec


class Discriminator(nn.Module):
    """Convolutions down to 4×4 pixels, with at least three layers, then one to a single logit.

    At 32×32 these are the four layers of the published code (C → 64 → 128 → 256 → 1). Smaller
    images keep the four layers, of which fewer halve the resolution; larger ones get more.
    """

    def __init__(self, spec: SampleSpec, channels: int = 64) -> None:
        super().__init__()
        if spec.kind != "image" or min(spec.shape[1:]) < 8:
            raise KDMError(f"adversarial.weight: the discriminator needs images of at least 8×8 "
                           f"pixels, found {spec.kind} of shape {spec.shape}; set it to 0")
        layers: list[nn.Module] = []
        c_in = spec.shape[0]
        halvings = int(math.log2(min(spec.shape[1:]) // 4))
        for level in range(max(3, halvings)):
            c_out = channels * 2**level
            if level < halvings:
                layers.append(nn.Conv2d(c_in, c_out, 4, stride=2, padding=1))
            else:
                layers.append(nn.Conv2d(c_in, c_out, 3, padding=1))
            layers += [nn.BatchNorm2d(c_out)] if level else []
            layers += [nn.LeakyReLU(0.2)]
            c_in = c_out
        self.body = nn.Sequential(*layers, nn.Conv2d(c_in, 1, 4))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) → logits (B,), high for the teacher's."""
        return self.body(images).flatten(1).mean(dim=1)  # type: ignore[no-any-return]


def generator_loss(fake: Tensor) -> Tensor:
    """CE(1, D(x̂)) of algorithm 1: the student is rewarded for passing as the teacher."""
    return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """CE(1, D(x)) + CE(0, D(x̂)) of algorithm 1."""
    return (F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
            + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake)))
