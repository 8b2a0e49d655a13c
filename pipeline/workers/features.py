"""Features of images as a task: each item is a batch."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdm_core.errors import MismatchError, placed
from kdm_core.metrics.extractors import ExtractorConfig, build_extractor
from kdm_core.metrics.features import Extractor, FeatureCache, Features, extract
from kdm_core.weights import WeightsSources
from pipeline.runtime.progress import Progress
from pipeline.workers.tasks import Engine, Folder, Work


class Origin(NamedTuple):
    """What an extractor is built from.

    Attributes:
        weights: files of the user's own.
        classifier: the folder of the run's classifier; None if there is none.
    """

    config: ExtractorConfig
    weights: WeightsSources
    classifier: Folder | None

    @placed("weights")
    def build(self, device: torch.device) -> Extractor:
        """Raises: as `build_extractor`."""
        if self.classifier is None:
            return build_extractor(self.config, self.weights, device)
        with self.classifier.at_hand() as folder:
            return build_extractor(self.config, self.weights, device, folder)

    def packed(self) -> "Origin":
        """As `Task.packed`: weights are looked for where this machine has them, too."""
        return Origin(self.config, absolute_weights(self.weights),
                      self.classifier and self.classifier.packed())


def absolute_weights(weights: WeightsSources) -> WeightsSources:
    """Files of the user's own as processes in other folders find them."""
    return {name: source.model_copy(update={"path": str(Path(source.path).resolve())})
            for name, source in weights.items()}


class FeatureTask(NamedTuple):
    """Features of batches of uint8 images (B, C, H, W).

    Attributes:
        fingerprint: of the stage's own extractor.
    """

    origin: Origin
    fingerprint: str

    @property
    def written(self) -> None:
        return None

    def packed(self) -> "FeatureTask":
        return self._replace(origin=self.origin.packed())

    def start(self, device: torch.device) -> Work:
        extractor = self.origin.build(device)
        if extractor.fingerprint != self.fingerprint:
            raise MismatchError(f"the weights of {extractor.name} are not those of the stage: "
                                "bring the same ones there (kdm weights list)")

        def work(images: NDArray[np.uint8]) -> Features:
            return extract(extractor, torch.from_numpy(images), len(images))

        return work


class FeatureSource(NamedTuple):
    """Features of sets of images: known ones, or computed with the workers of an engine.

    Attributes:
        extractor: of this process.
        origin: what workers build theirs from.
    """

    extractor: Extractor
    origin: Origin
    cache: FeatureCache
    workers: Engine

    def __call__(self, images: Tensor, name: str) -> Features:
        """Features of uint8 images (n, C, H, W); `name` says which they are.

        Raises: as `FeatureCache.get` and `Engine.run`.
        """
        with Progress(f"{self.extractor.name}, {name}", len(images), "image") as progress:
            return self.cache.get(self.extractor, images, progress.update, self.compute)

    def compute(
        self, extractor: Extractor, images: Tensor, *, on_images: Callable[[int], None]
    ) -> Features:
        """As `kdm_core.metrics.features.extract`, to the bit: batches are cut in the same way."""
        batches = [batch.numpy() for batch in torch.split(images, extractor.batch)]
        if self.workers.alone or len(batches) == 1:
            return extract(extractor, images, on_images=on_images)
        found: dict[int, Features] = {}

        def on_batch(place: int, features: Features) -> None:
            found[place] = features
            on_images(len(batches[place]))

        self.workers.run(FeatureTask(self.origin, extractor.fingerprint), batches, on_batch)
        parts = [found[place] for place in range(len(batches))]
        probabilities = [part.probabilities for part in parts if part.probabilities is not None]
        return Features(np.concatenate([part.features for part in parts]),
                        np.concatenate(probabilities) if probabilities else None)
