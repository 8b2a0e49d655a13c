"""Figures over sets of points."""

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.floating]


def sliced_wasserstein(a: Points, b: Points, projections: int, seed: int) -> float:
    """Sliced Wasserstein-2 distance between point sets (n, D) and (m, D) (Bonneel et al. 2015).

    The root of the mean over random directions of the squared distance between the projected
    distributions; in the points' own unit.
    """
    generator = np.random.default_rng(seed)
    directions = generator.standard_normal((projections, a.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    n = max(len(a), len(b))
    # Sets of different size are compared at the quantiles of the larger one.
    levels = (np.arange(n) + 0.5) / n
    squared = [
        np.mean((quantiles(a @ d, levels) - quantiles(b @ d, levels)) ** 2) for d in directions
    ]
    return float(np.sqrt(np.mean(squared)))


def quantiles(values: NDArray[np.floating], levels: NDArray[np.float64]) -> NDArray[np.floating]:
    """Quantiles of an empirical distribution (a step function, not interpolated)."""
    ordered = np.sort(values)
    return np.asarray(ordered[(levels * len(ordered)).astype(np.int64)])
