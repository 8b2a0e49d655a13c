"""Distances d(x, y) between samples and their reconstructions (eqs. 5 and 7)."""

from collections.abc import Sequence
from math import sqrt
from typing import Annotated, Literal, NamedTuple, Protocol

import torch
from pydantic import Field
from torch import Tensor

from kdm_core.config import Config
from kdm_core.errors import KDMError
from kdm_core.losses.perceptual import LPIPS
from kdm_core.losses.trunks import LAYOUTS, Net, Pooling, check_images
from kdm_core.samples import SampleSpec


class Parts(NamedTuple):
    """Of what a distance is the sum, each (B,) and weighted: mean squared or absolute error,
    pseudo-Huber distance, LPIPS; None where it has no such part."""

    plain: Tensor | None = None
    huber: Tensor | None = None
    lpips: Tensor | None = None


class Distance(Protocol):
    """d(x, y). No gradient flows into the target, and what depends on it alone is computed once.
    """

    def __call__(self, target: Tensor, predictions: Sequence[Tensor]) -> list[Tensor]:
        """Of each prediction a scalar, averaged over the batch; all (B, *shape)."""

    def parts(self, target: Tensor, prediction: Tensor, values: Tensor, made: Tensor) -> Parts:
        """What it is made of, sample by sample, for losses that weigh it by the time.

        Args:
            target, prediction: (B, *shape), which a network looks at.
            values, made: (B, *shape), the same or what follows from them, whose values count.
        """


class MSEConfig(Config):
    """Mean squared error over all values."""

    kind: Literal["mse"]


class L1Config(Config):
    """Mean absolute error over all values, with which GET and the first distillations learned."""

    kind: Literal["l1"]


class PseudoHuberConfig(Config):
    """√(‖x − y‖²/D + c²) − c over the D values of a sample (Song & Dhariwal 2024, scaled by D).

    Attributes:
        c: root mean square error, in the samples' units, below which it grows with the square of
            the error, and above which with the error.
    """

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
        huber: weight of the pseudo-Huber distance of c = 0.00054 √D for D values, as 2-rectified
            flow++ adds it (arXiv:2405.20320).
    """

    kind: Literal["lpips"]
    net: Net = "vgg"
    resolution: int = Field(64, ge=0)
    pooling: Pooling = "max"
    mse: float = Field(0.0, ge=0)
    huber: float = Field(0.0, ge=0)


DistanceConfig = Annotated[
    MSEConfig | L1Config | PseudoHuberConfig | LPIPSConfig, Field(discriminator="kind")
]


HUBER = 0.00054
"""c of 2-rectified flow++, over the root of the number of values."""


def mse(target: Tensor, prediction: Tensor) -> Tensor:
    return (target - prediction).square().mean()


def squared(target: Tensor, prediction: Tensor) -> Tensor:
    """The mean squared error of each sample, (B,)."""
    return (target - prediction).square().flatten(1).mean(dim=1)


def pseudo_huber(target: Tensor, prediction: Tensor, c: float) -> Tensor:
    """Of each sample, (B,)."""
    return (squared(target, prediction) + c**2).sqrt() - c


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
        return Perceptual(config, device)
    if isinstance(config, L1Config):
        return L1()
    return MSE() if isinstance(config, MSEConfig) else PseudoHuber(config.c)


class MSE:
    """See `MSEConfig`."""

    def __call__(self, target: Tensor, predictions: Sequence[Tensor]) -> list[Tensor]:
        return [mse(target.detach(), each) for each in predictions]

    def parts(self, target: Tensor, prediction: Tensor, values: Tensor, made: Tensor) -> Parts:
        return Parts(plain=squared(values.detach(), made))


class L1:
    """See `L1Config`."""

    def __call__(self, target: Tensor, predictions: Sequence[Tensor]) -> list[Tensor]:
        return [(target.detach() - each).abs().mean() for each in predictions]

    def parts(self, target: Tensor, prediction: Tensor, values: Tensor, made: Tensor) -> Parts:
        return Parts(plain=(values.detach() - made).abs().flatten(1).mean(dim=1))


class PseudoHuber:
    """See `PseudoHuberConfig`."""

    def __init__(self, c: float) -> None:
        self.c = c

    def __call__(self, target: Tensor, predictions: Sequence[Tensor]) -> list[Tensor]:
        return [pseudo_huber(target.detach(), each, self.c).mean() for each in predictions]

    def parts(self, target: Tensor, prediction: Tensor, values: Tensor, made: Tensor) -> Parts:
        return Parts(huber=pseudo_huber(values.detach(), made, self.c))


class Perceptual:
    """See `LPIPSConfig`."""

    def __init__(self, config: LPIPSConfig, device: torch.device) -> None:
        self.config = config
        self.lpips = LPIPS(config.resolution, config.net, config.pooling).to(device)

    def __call__(self, target: Tensor, predictions: Sequence[Tensor]) -> list[Tensor]:
        config, distances = self.config, list(
            self.lpips.to_target(target, list(predictions)).mean(dim=1))
        if config.mse:
            distances = [each + config.mse * mse(target.detach(), prediction)
                         for each, prediction in zip(distances, predictions, strict=True)]
        if config.huber:
            distances = [each + config.huber * pseudo_huber(
                target.detach(), prediction, self.c(target)).mean()
                for each, prediction in zip(distances, predictions, strict=True)]
        return distances

    def parts(self, target: Tensor, prediction: Tensor, values: Tensor, made: Tensor) -> Parts:
        config, values = self.config, values.detach()
        return Parts(
            plain=config.mse * squared(values, made) if config.mse else None,
            huber=(config.huber * pseudo_huber(values, made, self.c(values))
                   if config.huber else None),
            lpips=self.lpips.to_target(target, [prediction])[0])

    def c(self, like: Tensor) -> float:
        return HUBER * sqrt(like[0].numel())
