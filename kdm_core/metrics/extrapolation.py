"""The Fréchet distance at infinitely many samples (Chong and Forsyth 2020, FID∞).

A Fréchet distance of n samples is too large by about c / n, where c depends on the set that is
judged, so that two sets cannot be compared fairly at any n. A straight line through distances at
several n, against 1 / n, meets the axis at the distance without that error.

Chong and Forsyth take random subsets. Here the set is halved at random, the halves are halved, and
the distance at n / 2^k is the mean over all 2^k disjoint parts. Both are as honest, but the noise
differs: to first order, the mean over parts that make up the whole set errs exactly as the whole
set does (each sample has the same influence in both), and so does the intercept, whose weights add
up to one. The intercept thus has the noise of the distance itself and none of the fit's, so the
replicates of the distance, moved onto the intercept, are its replicates. (What is left is of second
order and matters only where both distributions are the same. There the intercept of halves has √2
times the deviation of the distance, and that of four levels hardly more than it; the replicates
are too wide by about as much.) Fitting each replicate anew would take 15 times the work and add
the bias of repeated samples.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdm_core.metrics.estimate import Array, Estimate
from kdm_core.metrics.frechet import Gaussian, fit_gaussian, frechet_distance

PER_DIMENSION = 4
"""Samples that the smallest parts must have for each dimension.

Below, the error is not linear in 1 / n any more. On VGG16's features (512 dimensions) the intercept
is off by half of its standard deviation with parts of 4 per dimension, and by all of it with 2.
"""
LEVELS = 4


class Extrapolation(NamedTuple):
    """Distances at several n, and their limit.

    Attributes:
        n: number of samples, largest first; a mean where parts differ by one.
        distances: the mean over the parts of that size.
        infinite: the limit, with replicates.
    """

    n: list[float]
    distances: list[float]
    infinite: Estimate


def samples_needed(dim: int) -> int:
    """How many samples of so many dimensions it takes to extrapolate."""
    return 2 * PER_DIMENSION * dim


def extrapolate(
    features: NDArray[np.floating], reference: Gaussian, root: Array, whole: Estimate, seed: int
) -> Extrapolation | None:
    """Distances of ever smaller parts of features (n, d), and the limit of an infinite set.

    Takes up to 14 distances beyond that of the whole set.

    Args:
        features, reference, root: as for `frechet_estimate`.
        whole: what that gave.
        seed: of the halving.

    Returns:
        None where there are fewer than `samples_needed`: no line can then be trusted.

    Raises:
        DataError, MismatchError: as `frechet_estimate`.
    """
    n, dim = features.shape
    order = np.random.default_rng(seed).permutation(n)
    shares, distances = [1], [whole.value]
    while len(shares) < LEVELS and n >= PER_DIMENSION * dim * 2 * shares[-1]:
        shares.append(2 * shares[-1])
        parts = np.array_split(order, shares[-1])
        distances.append(float(np.mean([
            frechet_distance(fit_gaussian(features[part]), reference, root) for part in parts])))
    if len(shares) == 1:
        return None
    _, limit = np.polyfit(shares, distances, 1)
    infinite = Estimate(float(limit), whole.replicates - whole.value + limit, n)
    return Extrapolation([n / share for share in shares], distances, infinite)
