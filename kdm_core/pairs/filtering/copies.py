"""How near samples are to training samples, and which are too near."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kdm_core.errors import DataError
from kdm_core.metrics.neighbours import Nearest, nearest
from kdm_core.pairs.filtering.config import CopiesConfig

COMPARED = 2000
"""Training samples whose nearest other one is found: their median is known to some percent."""

Vectors = Callable[[NDArray[Any]], NDArray[Any]]
"""Samples (n, *shape) as at rest → what is compared of them, as `nearest` takes it."""


class Space(NamedTuple):
    """Where samples are compared with the training data.

    Attributes:
        config: what is too near.
        vectors: what is compared of samples: themselves, or features.
        train: the same (m, …) of all training samples.
        between: distances (k,) of training samples, at most `COMPARED` drawn at random, to the
            nearest other one.
    """

    config: CopiesConfig
    vectors: Vectors
    train: NDArray[Any]
    between: NDArray[np.float64]

    def nearest(self, samples: NDArray[Any], device: torch.device) -> Nearest:
        """The nearest training sample to each of samples (n, *shape) as at rest."""
        return nearest(self.vectors(samples), self.train, device=device)

    def limit(self, distance: NDArray[np.float64]) -> float:
        """The largest distance of a near copy.

        Args:
            distance: of all samples, (n,); infinite where it is unknown.
        """
        if self.config.threshold is not None:
            return self.config.threshold * float(np.median(self.between))
        known = distance[np.isfinite(distance)]
        if not len(known):
            return 0.0
        assert self.config.quantile is not None
        return float(np.quantile(known, self.config.quantile, method="inverted_cdf"))


def make_space(
    config: CopiesConfig, train: NDArray[Any], vectors: Vectors, seed: int, device: torch.device
) -> Space:
    """A space, in which training data are compared with one another.

    Args:
        train: `vectors` of all training samples.
        seed: of the choice of training samples.

    Raises:
        DataError: there is one training sample, which has no other.
    """
    if len(train) < 2:
        raise DataError("it takes two training samples or more; leave it out", field="copies")
    own = np.sort(np.random.default_rng(seed).permutation(len(train))[:COMPARED])
    return Space(config, vectors, train, nearest(train[own], train, own, device).distance)
