"""Distances d(x, y) between samples and their reconstructions (eqs. 5 and 7)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdm_core.config import Config
from kdm_core.errors import KDMError
from kdm_core.losses.perceptual import LPIPS
from kdm_core.losses.trunks import LAYOUTS, Net, Pooling, check_images
from kdm_core.samples import SampleSpec

Distance = Callable[[Tensor, Sequence[Tensor]], list[Tensor]]
"""(target, predictions), all (B, *shape) → of each prediction a scalar, averaged over the batch.

No gradient flows into the target, and what depends on it alone is computed once.
"""


class MSEConfig(Config):
    """Mean squared error over all values."""

    kind: Literal["mse"]


class PseudoHuberConfig(Config):
    """√(‖x − y‖²/D + c²) − c over the D values of a sample (Song & Dhariwal 2024, scaled by D)."""

    kind: Literal["pseudo_huber"]
    c: float = Field(0.03, gt=0)


class LPIPSConfig(Config):
    """LPIPS, plus `mse` times the mean squared error.

    KDM's published code uses `pooling: average` and `resolution: 0`.

    Attributes:
        net: VGG16 or AlexNet.
        resolution: images with a shorter side are enlarged until it has this many pixels; 0 takes
            them as they are. VGG16 needs at least 16 pixels, AlexNet 31.
        pooling: between the blocks of the network; LPIPS was calibrated with max.
        mse: weight of the mean squared error.
    """

    kind: Literal["lpips"]
    net: Net = "vgg"
    resolution: int = Field(64, ge=0)
    pooling: Pooling = "max"
    mse: float = Field(0.0, ge=0)


DistanceConfig = Annotated[
    MSEConfig | PseudoHuberConfig | LPIPSConfig, Field(discriminator="kind")
]


def mse(target: Tensor, prediction: Tensor) -> Tensor:
    return (target - prediction).square().mean()


def pseudo_huber(target: Tensor, prediction: Tensor, c: float) -> Tensor:
    squared = (target - prediction).square().flatten(1).mean(dim=1)
    return ((squared + c**2).sqrt() - c).mean()


def check_distance(config: DistanceConfig, spec: SampleSpec) -> None:
    """Make sure that a distance is defined between samples of this kind and shape.

    Raises:
        KDMError: it is not; the message starts with the parameter's name.
    """
    if not isinstance(config, LPIPSConfig):
        return
    if spec.kind != "image" or spec.shape[0] not in (1, 3):
        raise KDMError("losses.distance.kind: LPIPS is for images of 1 or 3 channels, found "
                       f"{spec.kind} of shape {spec.shape}; use mse or pseudo_huber")
    try:
        check_images(config.net, config.resolution, spec.sample_shape)
    except KDMError as error:
        raise KDMError(f"losses.distance.resolution: {error}; set it to "
                       f"{LAYOUTS[config.net].smallest} or more (64, say), so that they are "
                       "enlarged") from error


def build_distance(config: DistanceConfig, device: torch.device) -> Distance:
    """The distance that a configuration describes.

    Raises:
        DataError: LPIPS is asked for, but its weights are not installed.
    """
    if isinstance(config, LPIPSConfig):
        return perceptual(config, device)
    one = mse if isinstance(config, MSEConfig) else partial(pseudo_huber, c=config.c)
    return lambda target, predictions: [one(target.detach(), each) for each in predictions]


def perceptual(config: LPIPSConfig, device: torch.device) -> Distance:
    lpips = LPIPS(config.resolution, config.net, config.pooling).to(device)

    def distance(target: Tensor, predictions: Sequence[Tensor]) -> list[Tensor]:
        distances = list(lpips.to_target(target, list(predictions)).mean(dim=1))
        if config.mse:
            distances = [each + config.mse * mse(target.detach(), prediction)
                         for each, prediction in zip(distances, predictions, strict=True)]
        return distances

    return distance
