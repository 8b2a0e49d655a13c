"""The filter as a task: each item is a range of pairs, which the worker measures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdm_core.datasets import Dataset, open_dataset
from kdm_core.errors import MismatchError, placed
from kdm_core.metrics.extractors import ExtractorConfig, build_extractor
from kdm_core.metrics.features import Extractor, FeatureCache, extract
from kdm_core.pairs.filtering.config import CopiesConfig, FilterConfig
from kdm_core.pairs.filtering.copies import Space, make_space
from kdm_core.pairs.filtering.judging import Judge
from kdm_core.pairs.filtering.rules import load_rules
from kdm_core.pairs.store import PairStore
from kdm_core.values import as_float, to_uint8
from kdm_core.weights import WeightsSources
from pipeline.workers.features import absolute_weights
from pipeline.workers.tasks import Work, absolute

FeaturesOf = Callable[[ExtractorConfig, Extractor, Tensor], NDArray[np.float32]]
"""Features (n, d) of the training images, uint8 (n, C, H, W)."""


class Yardstick(NamedTuple):
    """What pairs are judged by.

    Attributes:
        dataset, classifier: folders.
        weights: files of the user's own.
        cache: the folder of known features.
        seed: of the choice of training samples.
    """

    config: FilterConfig
    dataset: Path
    classifier: Path
    weights: WeightsSources
    cache: Path
    seed: int

    def absolute(self) -> "Yardstick":
        """The same for processes in other folders."""
        return self._replace(dataset=self.dataset.resolve(), classifier=self.classifier.resolve(),
                             weights=absolute_weights(self.weights), cache=self.cache.resolve())

    def judge(
        self, store: PairStore, device: torch.device, features_of: FeaturesOf
    ) -> tuple[Judge, list[str]]:
        """The judge, and what its judgement depends on besides configuration and pairs.

        Raises:
            MismatchError: the pairs are no samples of the data's shape.
            KDMError: an extractor or a rule cannot be had.
        """
        with placed("filter"):
            rules = load_rules(self.config, store.spec.samples)
        spaces, marks = [], [rule.sha256 for rule in rules.values()]
        if self.config.copies:
            dataset, mark = self.open_dataset(store)
            marks.append(mark)
        for config in self.config.copies:
            if config.features is None:
                with placed("filter"):
                    spaces.append(make_space(config, dataset.train_samples,
                                             lambda samples: samples, self.seed, device))
                continue
            with placed("weights"):
                extractor = build_extractor(config.features, self.weights, device, self.classifier)
            images = torch.from_numpy(np.array(dataset.train_samples))
            spaces.append(feature_space(config, extractor,
                                        features_of(config.features, extractor, images),
                                        self.seed, device))
            marks.append(extractor.fingerprint)
        judge = Judge(self.config, spaces, {path: rule for path, (rule, _) in rules.items()},
                      device)
        return judge, marks

    def open_dataset(self, store: PairStore) -> tuple[Dataset, str]:
        """The data, and their fingerprint.

        Raises:
            MismatchError: the pairs are no samples of their shape.
        """
        dataset, mark = open_dataset(self.dataset)
        real, made = dataset.info.samples, store.spec.samples
        if (real.kind, real.shape) != (made.kind, made.shape):
            raise MismatchError(f"filter.copies: {self.dataset} has {real.kind} samples of shape "
                                f"{real.shape}, {store.location} {made.kind} samples of shape "
                                f"{made.shape}: they cannot be compared; leave it out")
        return dataset, mark


@placed("filter")
def feature_space(
    config: CopiesConfig, extractor: Extractor, train: NDArray[Any], seed: int,
    device: torch.device,
) -> Space:
    """The space of an extractor's features, those of the training images being `train` (m, d)."""
    return make_space(
        config, train, lambda samples: extract(extractor, to_uint8(as_float(samples))).features,
        seed, device)


class FilterTask(NamedTuple):
    """Measuring pairs.

    Attributes:
        store: its location.
        pairs: fingerprint of the store.
        marks: what the stage's own yardstick depends on.
    """

    store: str
    pairs: str
    yardstick: Yardstick
    marks: list[str]

    @property
    def written(self) -> None:
        return None

    def packed(self) -> "FilterTask":
        return self._replace(store=absolute(self.store), yardstick=self.yardstick.absolute())

    def start(self, device: torch.device) -> Work:
        store, cache = PairStore.open(self.store), FeatureCache(self.yardstick.cache)
        judge, marks = self.yardstick.judge(
            store, device, lambda config, extractor, images: cache.get(extractor, images).features)
        if (store.spec.fingerprint, marks) != (self.pairs, self.marks):
            raise MismatchError(f"pairs, data, weights or rules are not those of the stage: filter "
                                f"where all machines see the same {self.yardstick.dataset.parent} "
                                "and the same rules")
        return placed("filter")(lambda rows: judge.measure(store, rows))
