"""Extractors: networks of others in whose features sets of images are compared."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from kdm_core.config import Config
from kdm_core.errors import KDMError
from kdm_core.losses.trunks import check_images
from kdm_core.metrics.classifier import ClassifierExtractor, load_classifier
from kdm_core.metrics.extractors.inception import Inception, InceptionConfig
from kdm_core.metrics.extractors.vgg16 import VGG16, VGG16Config
from kdm_core.metrics.extractors.vit import CLIPConfig, DINOv2Config, ViT
from kdm_core.metrics.features import Extractor
from kdm_core.samples import SampleSpec
from kdm_core.weights.store import WeightsSource


class ReferenceConfig(Config):
    """A classifier that was trained on the data set."""

    kind: Literal["classifier"]

    @property
    def name(self) -> str:
        return self.kind


ExtractorConfig = Annotated[
    ReferenceConfig | VGG16Config | InceptionConfig | DINOv2Config | CLIPConfig,
    Field(discriminator="kind")]

__all__ = ["CLIPConfig", "DINOv2Config", "ExtractorConfig", "InceptionConfig", "ReferenceConfig",
           "VGG16Config", "build_extractor", "check_extractor"]


PACKAGES: dict[type, tuple[str, str]] = {
    InceptionConfig: ("cleanfid", "clean-fid"), DINOv2Config: ("timm", "kdm-distill[features]"),
    CLIPConfig: ("timm", "kdm-distill[features]")}
"""What an extractor imports, and how that is installed."""


def check_extractor(config: ExtractorConfig, spec: SampleSpec) -> None:
    """Make sure that an extractor can be used here, on samples of this kind and shape.

    Raises:
        KDMError: it cannot; the message begins with its name.
    """
    if spec.kind != "image" or spec.shape[0] not in (1, 3):
        raise KDMError(f"{config.name} is for images of 1 or 3 channels, found {spec.kind} of "
                       f"shape {spec.shape}; take it out")
    if isinstance(config, VGG16Config):
        try:
            check_images("vgg", config.resolution, spec.sample_shape)
        except KDMError as error:
            raise KDMError(f"{error}; set resolution to 32") from error
    module, package = PACKAGES.get(type(config), ("", ""))
    if module and find_spec(module) is None:
        raise KDMError(f"{config.name} needs a package that is not installed: pip install "
                       f"'{package}', or take it out")


def build_extractor(
    config: ExtractorConfig, sources: Mapping[str, WeightsSource], device: torch.device,
    classifier: Path | None = None,
) -> Extractor:
    """The extractor that a configuration describes, with its weights, on the device.

    Args:
        config: which.
        sources: files of the user's own.
        device: where it computes.
        classifier: the folder of the run's classifier.

    Raises:
        WeightsMissing: its weights are not on this machine and cannot be downloaded; its metrics
            are absent then.
        MismatchError: a file has another checksum; it was not opened.
        DataError: a file of the right checksum cannot be read, or holds something else.
        KDMError: a package that it needs is not installed, or there is no classifier.
    """
    if isinstance(config, ReferenceConfig):
        if classifier is None:
            raise KDMError("extractors: there is no classifier here; take it out")
        model, fingerprint = load_classifier(classifier)
        return ClassifierExtractor(model.to(device), fingerprint)
    if isinstance(config, VGG16Config):
        return VGG16(config, device)
    if isinstance(config, InceptionConfig):
        return Inception(config, sources, device)
    return ViT(config, sources, device)
