"""Figures over sets of points."""

import numpy as np
from numpy.typing import NDArray

from kdm_core.metrics.estimate import Array, Counts, Estimate, linear_estimate
from kdm_core.metrics.kernel import discrepancy, negative_distance, self_similarity

Points = NDArray[np.floating]


def energy_distance(made: Points, real: Points, counts: Counts) -> Estimate:
    """2 E‖x − y‖ − E‖x − x′‖ − E‖y − y′‖ between sets (n, D) and (m, D), in the points' own unit.

    Over pairs of different points (the U-statistic; Székely and Rizzo 2013), so that its mean is
    the distance of the distributions at any n and it may be negative, as KID may. The V-statistic,
    which also pairs points with themselves, is always positive but too large by about 1 / n times
    their spread.

    Raises:
        DataError: the counts are those of another number of points.
    """
    similarity = self_similarity(negative_distance, real)
    return discrepancy(negative_distance, made, real, similarity, counts)


def sliced_wasserstein(
    made: Points, real: Points, projections: int, seed: int, counts: Counts
) -> Estimate:
    """Sliced Wasserstein-2 distance between point sets (n, D) and (m, D) (Bonneel et al. 2015).

    The root of the mean over random directions of the squared distance between the projected
    distributions; in the points' own unit. Replicates are over `made`.

    Each direction takes one sorting: the influence of a point on the squared distance in one
    dimension is Kantorovich's potential there, whose slope is 2 (x − T(x)), where T is the monotone
    map onto the real points (Santambrogio 2015, proposition 7.17).

    Raises:
        DataError: the counts are those of another number of points.
    """
    generator = np.random.default_rng(seed)
    directions = generator.standard_normal((projections, made.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    squared, influence = 0.0, np.zeros(len(made))
    for direction in directions:
        projected = made.astype(np.float64) @ direction
        order = projected.argsort()
        value, potential = wasserstein_squared(
            projected[order], np.sort(real.astype(np.float64) @ direction))
        squared += value / projections
        influence[order] += potential / projections
    square = linear_estimate(squared, influence, counts)
    return Estimate(float(np.sqrt(squared)), np.sqrt(square.replicates.clip(min=0)), square.n)


def wasserstein_squared(a: Array, b: Array) -> tuple[float, Array]:
    """The squared distance of sorted numbers (n,) from sorted (m,), and their potentials (n,)."""
    size = max(len(a), len(b))
    # Sets of different size are compared at the quantiles of the larger one.
    levels = (np.arange(size) + 0.5) / size
    distance = ((quantiles(a, levels) - quantiles(b, levels)) ** 2).mean()
    # Between two neighbours of a, i / n of it lies to the left, and so does what it is mapped to.
    target = quantiles(b, np.arange(1, len(a)) / len(a))
    steps = np.diff(a**2) - 2 * target * np.diff(a)
    return float(distance), np.concatenate([[0.0], steps.cumsum()])


def quantiles(ordered: Array, levels: Array) -> Array:
    """Quantiles of sorted numbers (a step function, not interpolated)."""
    return np.asarray(ordered[(levels * len(ordered)).astype(np.int64)])
