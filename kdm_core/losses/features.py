"""Frozen networks in whose activations losses on the distribution see samples."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, NamedTuple, Self, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from kdm_core.config import Config
from kdm_core.errors import KDMError
from kdm_core.losses.trunks import LAYOUTS, Net, Trunk, check_images
from kdm_core.samples import SampleSpec

if TYPE_CHECKING:
    from kdm_core.metrics.classifier import Classifier
    from kdm_core.teachers import Teacher


M = TypeVar("M", bound=nn.Module)
NETS: dict[str, Net] = {"vgg16": "vgg", "alexnet": "alex"}


class VGG16Features(Config):
    """The five blocks of VGG16.

    Attributes:
        resolution: images with a shorter side are enlarged until it has this many pixels; 0 takes
            them as they are.
    """

    kind: Literal["vgg16"]
    resolution: int = Field(32, ge=0)


class AlexNetFeatures(Config):
    """The five blocks of AlexNet.

    Attributes:
        resolution: images with a shorter side are enlarged until it has this many pixels; 0 takes
            them as they are.
    """

    kind: Literal["alexnet"]
    resolution: int = Field(64, ge=0)


class ClassifierFeatures(Config):
    """The blocks and the last hidden layer of the run's own classifier."""

    kind: Literal["classifier"]


class TeacherFeatures(Config):
    """Layers of the teacher's own network, for samples of any kind; no outside weights.

    The encoder half of a U-Net, or blocks of another network. It is told the samples' labels if it
    takes any. Of a teacher that another one guides, these are the teacher's alone.

    Attributes:
        level: the noise level sigma / alpha at which the network is asked, rounded to one that it
            knows. Noise of that level is added to what it sees, which is all that it has learned
            to look at. A small level shows details, a large one the whole alone.
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


NOWHERE = Frozen()


class FeatureNetwork(nn.Module, ABC):
    """Samples (B, *shape) → activations of several layers, each (B, C, H, W) or (B, C).

    Its weights are frozen and in no state dict: never trained, averaged or stored. Gradients flow
    through it into the samples.
    """

    @abstractmethod
    def forward(self, samples: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        """`labels` (B,) int64 of samples that have classes, for networks that are told them."""

    @torch.no_grad()
    def shapes(self, spec: SampleSpec, device: torch.device) -> list[tuple[int, ...]]:
        """Of its layers for one sample: (C, H, W) or (C,)."""
        labels = spec.told(torch.zeros(1, dtype=torch.int64, device=device))
        found: list[Tensor] = self(torch.zeros(1, *spec.shape, device=device), labels)
        return [tuple(layer.shape[1:]) for layer in found]


class TrunkLayers(FeatureNetwork):
    """The five blocks of a network of ImageNet."""

    def __init__(self, net: Net, resolution: int) -> None:
        super().__init__()
        self.trunk = Trunk(net, resolution=resolution)

    def forward(self, samples: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        found: list[Tensor] = self.trunk(samples)
        return found


class Borrowed(FeatureNetwork, Generic[M]):
    """Layers of a network of the run, which is frozen from here on.

    It is no submodule, so that its weights are no part of whatever contains this.
    """

    def __init__(self, network: M) -> None:
        super().__init__()
        self.held = (network.eval().requires_grad_(False),)

    @property
    def network(self) -> M:
        return self.held[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Go where submodules would go (`to`)."""
        applied: Any = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.network._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return applied  # type: ignore[no-any-return]


class ClassifierLayers(Borrowed["Classifier"]):
    """Its batch normalisation is by the running averages."""

    def forward(self, samples: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        return self.network.activations(samples)


class TeacherLayers(Borrowed["Teacher"]):
    """Samples are brought to the noise level on the teacher's path, alpha x₀ + sigma ε, and then
    preconditioned as it does it. ε is from torch's global generator."""

    def __init__(self, teacher: "Teacher", level: float) -> None:
        """
        Raises:
            KDMError: it has not been trained at such a level.
        """
        super().__init__(teacher)
        if not teacher.lowest <= level <= teacher.highest:
            raise KDMError("features.level: the teacher knows noise levels from "
                           f"{teacher.lowest:.3g} to {teacher.highest:.3g}, not {level:g}; choose "
                           "one of those")
        time = teacher.time_at(torch.tensor(level, dtype=torch.float64))
        self.time, (self.alpha, self.sigma) = float(time), map(float, teacher.path(time))

    def forward(self, samples: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        samples = samples.to(torch.float32)
        noisy = self.alpha * samples + self.sigma * torch.randn_like(samples)
        return self.network.activations(noisy, noisy.new_full((), self.time), labels)


def check_features(
    config: FeaturesConfig, spec: SampleSpec, where: str = "losses.adversary.features"
) -> None:
    """Make sure that a network can take samples of this kind and shape.

    Args:
        where: the parameter in which the configuration stands, for messages.

    Raises:
        KDMError: it cannot; the message starts with the parameter's name.
    """
    if isinstance(config, TeacherFeatures):
        return
    if spec.kind != "image":
        raise KDMError(f"{where}.kind: {config.kind} is for images, found {spec.kind} of shape "
                       f"{spec.shape}; use teacher")
    if isinstance(config, ClassifierFeatures):
        return
    net = NETS[config.kind]
    if spec.shape[0] not in (1, 3):
        raise KDMError(f"{where}.kind: {config.kind} is for images of 1 or 3 channels, found "
                       f"{spec.shape[0]}; use teacher or classifier")
    try:
        check_images(net, config.resolution, spec.sample_shape)
    except KDMError as error:
        raise KDMError(f"{where}.resolution: {error}; set it to {LAYOUTS[net].smallest} or more, "
                       "so that they are enlarged") from error


def build_features(
    config: FeaturesConfig, spec: SampleSpec, device: torch.device, frozen: Frozen = NOWHERE
) -> FeatureNetwork:
    """The network that a configuration describes, on the device, in eval mode.

    Raises:
        KDMError: it cannot be had here, or is not for such samples.
        DataError: its weights are not installed.
    """
    check_features(config, spec, "features")
    network = layers_of(config, frozen).to(device).eval()
    try:
        network.shapes(spec, device)
    except KDMError as error:
        raise KDMError(f"features.kind: {config.kind} is of no use here ({error}); use another "
                       "one") from error
    return network


def layers_of(config: FeaturesConfig, frozen: Frozen) -> FeatureNetwork:
    """As `build_features`, wherever its weights happen to be."""
    if isinstance(config, TeacherFeatures):
        return TeacherLayers(at_hand(frozen.teacher, config.kind), config.level)
    if isinstance(config, ClassifierFeatures):
        return ClassifierLayers(at_hand(frozen.classifier, config.kind))
    return TrunkLayers(NETS[config.kind], config.resolution)


def at_hand(open_network: Callable[[], M] | None, kind: str) -> M:
    if open_network is None:
        raise KDMError(f"features.kind: there is no {kind} here; use another one")
    return open_network()
