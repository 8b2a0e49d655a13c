"""Distances d(x, y) between samples and their reconstructions (eqs. 5 and 7)."""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdm_core.config import Config

Distance = Callable[[Tensor, Tensor], Tensor]
"""(target, prediction), both (B, *shape) → scalar, averaged over the batch."""


class MSEConfig(Config):
    """Mean squared error over all values."""

    kind: Literal["mse"]


class PseudoHuberConfig(Config):
    """√(‖x − y‖²/D + c²) − c over the D values of a sample (Song & Dhariwal 2024, scaled by D)."""

    kind: Literal["pseudo_huber"]
    c: float = Field(0.03, gt=0)


class LPIPSConfig(Config):
    """LPIPS with VGG16's weights, plus `mse` times the mean squared error.

    Attributes:
        resolution: smaller images are enlarged to this many pixels first (at least 32, where
            VGG16's fifth block still has 2×2 pixels).
    """

    kind: Literal["lpips"]
    resolution: int = Field(64, ge=32)
    mse: float = Field(0.0, ge=0)


DistanceConfig = Annotated[
    MSEConfig | PseudoHuberConfig | LPIPSConfig, Field(discriminator="kind")
]


def mse(target: Tensor, prediction: Tensor) -> Tensor:
    return (target - prediction).square().mean()


def pseudo_huber(target: Tensor, prediction: Tensor, c: float) -> Tensor:
    squared = (target - prediction).square().flatten(1).mean(dim=1)
    return ((squared + c**2).sqrt() - c).mean()


def build_distance(config: DistanceConfig, device: torch.device) -> Distance:
    """The distance that a configuration describes.

    Raises:
        DataError: LPIPS is asked for, but its weights are not installed.
    """
    if isinstance(config, PseudoHuberConfig):
        return lambda target, prediction: pseudo_huber(target, prediction, config.c)
    if isinstance(config, LPIPSConfig):
        from kdm_core.losses.perceptual import LPIPS

        lpips = LPIPS(config.resolution).to(device)
        return lambda target, prediction: (
            lpips(target, prediction).mean() + config.mse * mse(target, prediction)
        )
    return mse
