"""Extractors: networks of others in whose features sets of images are compared."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from kdm_core.config import Config
from kdm_core.errors import KDMError
from kdm_core.metrics.classifier import ClassifierExtractor, load_classifier
from kdm_core.metrics.extractors.inception import Inception, InceptionConfig
from kdm_core.metrics.extractors.vgg16 import VGG16, VGG16Config
from kdm_core.metrics.extractors.vit import CLIPConfig, DINOv2Config, ViT
from kdm_core.metrics.features import Extractor
from kdm_core.weights.store import WeightsSource


class ReferenceConfig(Config):
    """The classifier that the pipeline trains on the data set (`reference.classifier`)."""

    kind: Literal["classifier"]

    @property
    def name(self) -> str:
        return self.kind


ExtractorConfig = Annotated[
    ReferenceConfig | VGG16Config | InceptionConfig | DINOv2Config | CLIPConfig,
    Field(discriminator="kind")]

__all__ = ["CLIPConfig", "DINOv2Config", "ExtractorConfig", "InceptionConfig", "ReferenceConfig",
           "VGG16Config", "build_extractor"]


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
            raise KDMError("evaluation.extractors: there is no classifier here; take it out")
        model, fingerprint = load_classifier(classifier)
        return ClassifierExtractor(model.to(device), fingerprint)
    if isinstance(config, VGG16Config):
        return VGG16(config, device)
    if isinstance(config, InceptionConfig):
        return Inception(config, sources, device)
    return ViT(config, sources, device)
