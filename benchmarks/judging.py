"""What students are judged by in these tables: the run's classifier and its real images."""

import numpy as np
import torch
from torch import Tensor

from kdm_core.datasets import open_dataset
from kdm_core.metrics.extractors import ReferenceConfig, build_extractor
from kdm_core.metrics.features import Features, extract
from kdm_core.metrics.frechet import fit_gaussian, frechet_distance
from kdm_core.values import to_uint8
from pipeline.runtime import paths


class Judge:
    """Fréchet distances in the classifier's features, of images (n, C, H, W) in [-1, 1]."""

    def __init__(self, device: torch.device) -> None:
        self.extractor = build_extractor(ReferenceConfig(kind="classifier"), {}, device,
                                         paths.REFERENCE)
        dataset, _ = open_dataset(paths.DATASET)
        real = torch.from_numpy(np.array(dataset.train_samples))
        self.real = fit_gaussian(extract(self.extractor, real).features)

    def features(self, images: Tensor) -> Features:
        return extract(self.extractor, to_uint8(images.cpu()))

    def to_real(self, found: Features) -> float:
        """The distance to the real training images."""
        return frechet_distance(fit_gaussian(found.features), self.real)
