"""Fidelity and variety by neighbourhoods: precision, recall, density and coverage.

Precision and recall (Kynkäänniemi et al. 2019) are the shares of made samples within the
neighbourhood of a real one, and of real samples within that of a made one. Density and coverage
(Naeem et al. 2020) are made for the same, and are less at the mercy of single outliers: how many
real neighbourhoods a made sample lies in, over how many it would on average, and the share of real
samples with a made one in their neighbourhood. A neighbourhood is a ball that reaches to the k-th
nearest sample of the same set, with each paper's k: 3 for the first two, 5 for the others.

All four depend on the number of samples on both sides: compare what was measured with the same.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdm_core.compute import state_dtype
from kdm_core.metrics.estimate import Array
from kdm_core.metrics.kernel import CELLS, CPU

PRECISION_K, DENSITY_K = 3, 5
LIMIT = 10_000
"""Samples of either set; more are drawn from at random. The cost is quadratic in it."""


class Neighbourhoods(NamedTuple):
    """A set and the balls around its samples.

    Attributes:
        features: (n, d).
        near, far: (n,) squared distance to the nearest neighbour number PRECISION_K, DENSITY_K.
    """

    features: Tensor
    near: Tensor
    far: Tensor


class Indicators(NamedTuple):
    """What each sample adds to the four figures, which are their means.

    Attributes:
        precision, density: (n,) of made samples, over which they can be resampled.
        recall, coverage: (m,) of real samples, likewise: their replicates are about which real
            samples were asked for, not about which samples were made.
    """

    precision: Array
    recall: Array
    density: Array
    coverage: Array


def subset(n: int, seed: int) -> NDArray[np.int64]:
    """Which of n samples are looked at: all, or a random LIMIT of them, in order."""
    if n <= LIMIT:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, LIMIT, replace=False))


def neighbourhoods(
    features: NDArray[np.floating], device: torch.device = CPU
) -> Neighbourhoods:
    """The balls around features (n, d), n > DENSITY_K."""
    points = torch.tensor(features, dtype=state_dtype(device), device=device)
    rows = max(1, CELLS // len(points))
    nearest = []
    for start in range(0, len(points), rows):
        distances = squared_distances(points[start : start + rows], points)
        distances[:, start:].fill_diagonal_(torch.inf)  # no sample is its own neighbour
        nearest.append(distances.topk(DENSITY_K, dim=1, largest=False).values)
    sorted_distances = torch.cat(nearest)
    return Neighbourhoods(points, sorted_distances[:, PRECISION_K - 1],
                          sorted_distances[:, DENSITY_K - 1])


def indicators(made: Neighbourhoods, real: Neighbourhoods) -> Indicators:
    """Who lies in whose neighbourhood; the distances of all pairs are never held at once."""
    rows = max(1, CELLS // len(real.features))
    precision, density = [], []
    recalled = torch.zeros(len(real.features), dtype=torch.bool, device=real.features.device)
    covered = recalled.clone()
    for points, radii in zip(
            torch.split(made.features, rows), torch.split(made.near, rows), strict=True):
        distances = squared_distances(points, real.features)
        within = distances <= real.far
        precision.append((distances <= real.near).any(dim=1))
        density.append(within.sum(dim=1))
        recalled |= (distances <= radii[:, None]).any(dim=0)
        covered |= within.any(dim=0)
    inside, recall, balls, coverage = (
        values.cpu().numpy().astype(np.float64)
        for values in (torch.cat(precision), recalled, torch.cat(density), covered))
    return Indicators(inside, recall, balls / DENSITY_K, coverage)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """‖x − y‖² of all pairs of (n, d) and (m, d)."""
    product = (a @ b.T).mul_(-2)
    return product.add_(a.square().sum(1)[:, None]).add_(b.square().sum(1)).clamp_(min=0)
