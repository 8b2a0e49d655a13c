"""A small convolutional autoencoder of our own, for images from 8×8 pixels on."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdm_core.config import Config
from kdm_core.decoders.base import Autoencoder
from kdm_core.errors import KDMError
from kdm_core.networks.base import GroupNorm
from kdm_core.networks.unet import ResidualBlock

Direction = Literal["down", "up"]
LEAST, MOST = -30.0, 10.0
"""What log-variances are clamped to, so that none overflows before the KL has drawn it in."""


class ConvAutoencoderConfig(Config):
    """Residual convolutions that halve the resolution, and their mirror image.

    Attributes:
        channels: channels of the first level.
        multipliers: channels of each level, as multiples of `channels`; each level after the
            first halves the resolution.
        blocks: residual blocks a level.
        latent_channels: channels of a latent.
    """

    kind: Literal["conv"]
    channels: int = Field(16, ge=8, multiple_of=8)
    multipliers: list[int] = Field([1, 2, 4], min_length=1)
    blocks: int = Field(1, ge=1)
    latent_channels: int = Field(4, ge=1)

    @property
    def halvings(self) -> int:
        return len(self.multipliers) - 1


class Half(nn.Module):
    """A convolution, residual blocks of each width, and a convolution: (B, C, H, W) to another."""

    def __init__(
        self, c_in: int, widths: list[int], c_out: int, blocks: int, direction: Direction
    ) -> None:
        """`direction`: whether the resolution is halved or doubled between two widths."""
        super().__init__()
        self.enter = nn.Conv2d(c_in, widths[0], 3, padding=1)
        self.layers = nn.ModuleList()
        channels = widths[0]
        for level, width in enumerate(widths):
            if level:
                self.layers.append(resample(channels, width, direction))
            self.layers += [ResidualBlock(width, width, 0, attention=False) for _ in range(blocks)]
            channels = width
        self.norm = GroupNorm(8, channels)
        self.leave = nn.Conv2d(channels, c_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # Convolutions are faster in this layout on CPUs and on tensor cores.
        h = self.enter(x.contiguous(memory_format=torch.channels_last))
        for layer in self.layers:
            h = layer(h, None) if isinstance(layer, ResidualBlock) else layer(h)
        out: Tensor = self.leave(F.silu(self.norm(h)))
        return out.contiguous()


def resample(c_in: int, c_out: int, direction: Direction) -> nn.Module:
    if direction == "down":
        return nn.Conv2d(c_in, c_out, 3, stride=2, padding=1)
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"),
                         nn.Conv2d(c_in, c_out, 3, padding=1))


class ConvAutoencoder(Autoencoder):
    """See `ConvAutoencoderConfig`. An image's latents are a normal distribution, whose mean
    `encode` gives."""

    config: ConvAutoencoderConfig

    def __init__(self, config: ConvAutoencoderConfig, picture: list[int]) -> None:
        """
        Raises:
            KDMError: such images cannot be halved as often.
        """
        super().__init__(picture, conv_shape(config, picture))
        self.config = config
        widths = [multiplier * config.channels for multiplier in config.multipliers]
        self.encoder = Half(picture[0], widths, 2 * config.latent_channels, config.blocks, "down")
        self.decoder = Half(config.latent_channels, widths[::-1], picture[0], config.blocks, "up")
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log-variances (B, *shape) of the raw latents of images (B, *picture)."""
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        return mean, log_variance.clamp(LEAST, MOST)

    def raw_encode(self, images: Tensor) -> Tensor:
        return self.posterior(images)[0]

    def raw_decode(self, latents: Tensor) -> Tensor:
        out: Tensor = self.decoder(latents)
        return out

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What training needs of images (B, *picture), given standard normal noise (B, *shape).

        Returns:
            The images decoded from latents drawn by that noise, and what `posterior` gives, each
            in float32.
        """
        mean, log_variance = (each.to(torch.float32) for each in self.posterior(images))
        drawn = mean + (log_variance / 2).exp() * noise
        return self.raw_decode(drawn).to(torch.float32), mean, log_variance


def conv_shape(config: ConvAutoencoderConfig, picture: list[int]) -> list[int]:
    """The shape (C, H, W) of the latents of images of shape `picture`.

    Raises:
        KDMError: such images cannot be halved as often.
    """
    side = 2**config.halvings
    if len(picture) != 3 or any(length % side for length in picture[1:]):
        raise KDMError(f"{config.halvings + 1} levels need images (C, H, W) whose height and width "
                       f"are divisible by {side}, found samples of shape {picture}: use fewer "
                       "levels, or images of other sizes", field="multipliers")
    return [config.latent_channels, *(length // side for length in picture[1:])]
