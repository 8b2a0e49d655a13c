"""Mean and deviation of every channel of an autoencoder's latents, and what becomes of them."""

from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from kdm_core.config import Config
from kdm_core.decoders.base import Autoencoder
from kdm_core.errors import KDMError
from kdm_core.values import as_float

SIGMA = 0.5
"""Standard deviation of latents where nothing else is asked for: EDM's sigma_data."""


class ChannelStatistics(Config):
    """What a network's own latents are like: they are shifted and scaled, channel by channel, to
    mean 0 and standard deviation `sigma`.

    Attributes:
        mean: of each channel.
        std: standard deviation of each channel.
        sigma: standard deviation that they get.
    """

    mean: list[float] = Field(min_length=1)
    std: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    sigma: float = Field(SIGMA, gt=0)

    @model_validator(mode="after")
    def _paired(self) -> "ChannelStatistics":
        if len(self.mean) != len(self.std):
            raise ValueError(f"std: {len(self.mean)} means and {len(self.std)} standard "
                             "deviations; give one of each for every channel")
        return self


STABILITY_VAE = ChannelStatistics(mean=[5.81, 3.25, 0.12, -2.15], std=[4.17, 4.62, 3.71, 3.28])
"""Of the latents of stabilityai/sd-vae-ft-mse of ImageNet's images in [0, 1], as EDM2's models for
512 × 512 pixels assume them (NVlabs/edm2, training/encoders.py, StabilityVAEEncoder)."""


def set_statistics(model: Autoencoder, statistics: ChannelStatistics) -> None:
    """Have a model's latents shifted and scaled by these statistics.

    Raises:
        KDMError: they are of another number of channels.
    """
    if len(statistics.mean) != model.shape[0]:
        raise KDMError(f"{len(statistics.mean)} channels, but the latents have {model.shape[0]}; "
                       "give statistics of these latents", field="statistics")
    std = torch.tensor(statistics.std, dtype=torch.float32)
    # In float32 throughout, as the published code of EDM2 computes its factors.
    model.rescale(torch.tensor(statistics.mean, dtype=torch.float32),
                  torch.tensor(statistics.sigma, dtype=torch.float32) / std)


@torch.inference_mode()
def measure_statistics(
    model: Autoencoder, images: NDArray[np.uint8], device: torch.device, batch: int = 256,
    sigma: float = SIGMA, on_images: Callable[[int], None] = lambda images: None,
) -> ChannelStatistics:
    """Mean and standard deviation of the network's own latents of images.

    Args:
        model: is moved to the device.
        images: (n, *picture) uint8, may be memory-mapped; a few thousand are plenty.
        device, batch: where, and how many images at a time.
        sigma: that of the statistics.
        on_images: told after each batch how many images it had.

    Raises:
        KDMError: a channel has the same value everywhere, or one that is not finite.
    """
    model = model.to(device).eval()
    sums = torch.zeros(2, model.shape[0], dtype=torch.float64)
    for start in range(0, len(images), batch):
        chunk = as_float(images[start : start + batch]).to(device)
        raw = model.raw_encode(chunk).to("cpu", torch.float64)
        sums += torch.stack([raw.sum(dim=(0, 2, 3)), raw.square().sum(dim=(0, 2, 3))])
        on_images(len(chunk))
    mean, square = sums / (len(images) * model.shape[1] * model.shape[2])
    std = (square - mean.square()).clamp(min=0).sqrt()
    if not ((std > 1e-6 * square.sqrt()) & std.isfinite()).all():
        raise KDMError(f"the channels of these latents have standard deviations {std.tolist()}: "
                       "one says nothing, or is not finite; train longer, with a lower rate (lr) "
                       "or a smaller weight of the KL divergence (kl), or with fewer channels")
    return ChannelStatistics(mean=mean.tolist(), std=std.tolist(), sigma=sigma)


def normalise(
    model: Autoencoder, images: NDArray[np.uint8], device: torch.device, batch: int = 256,
    sigma: float = SIGMA, on_images: Callable[[int], None] = lambda images: None,
) -> ChannelStatistics:
    """Have the latents of these images mean 0 and standard deviation `sigma` in every channel.

    Arguments, return value and errors are those of `measure_statistics`.
    """
    found = measure_statistics(model, images, device, batch, sigma, on_images)
    set_statistics(model, found)
    return found
