"""Frozen networks in whose activations losses on the distribution see samples."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from kdm_core.config import Config
from kdm_core.samples import SampleSpec

if TYPE_CHECKING:
    from kdm_core.metrics.classifier import Classifier
    from kdm_core.teachers import Teacher


class VGG16Features(Config):
    """The five blocks of VGG16; images with a shorter side are enlarged to `resolution` pixels."""

    kind: Literal["vgg16"]
    resolution: int = Field(32, ge=0)


class AlexNetFeatures(Config):
    """The five blocks of AlexNet; images with a shorter side are enlarged to `resolution`."""

    kind: Literal["alexnet"]
    resolution: int = Field(64, ge=0)


class ClassifierFeatures(Config):
    """The layers of the classifier that the run trains (`reference.classifier`)."""

    kind: Literal["classifier"]


class TeacherFeatures(Config):
    """The layers of the teacher's own network, for samples of any kind; no outside weights.

    Attributes:
        level: the noise level sigma / alpha at which the network is asked. Noise of that level is
            added to what it sees.
    """

    kind: Literal["teacher"]
    level: float = Field(0.2, gt=0)


FeaturesConfig = Annotated[
    VGG16Features | AlexNetFeatures | ClassifierFeatures | TeacherFeatures,
    Field(discriminator="kind"),
]


class Frozen(NamedTuple):
    """Where a run's own networks are to be had from, when a loss asks for them; None if nowhere."""

    teacher: "Callable[[], Teacher] | None" = None
    classifier: "Callable[[], Classifier] | None" = None


NONE = Frozen()


class FeatureNetwork(nn.Module, ABC):
    """Samples (B, *shape) → activations of several layers, each (B, C, H, W) or (B, C).

    Its weights are frozen and in no state dict: never trained, averaged or stored. Gradients flow
    through it into the samples.
    """

    @abstractmethod
    def forward(self, samples: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        """`labels` (B,) int64 of samples that have classes, for networks that are told them."""


def build_features(
    config: FeaturesConfig, spec: SampleSpec, device: torch.device, frozen: Frozen
) -> FeatureNetwork:
    """The network that a configuration describes, on the device, in eval mode.

    Raises:
        KDMError: it cannot be had here, or is not for such samples.
        DataError: its weights are not installed.
    """
    raise NotImplementedError
