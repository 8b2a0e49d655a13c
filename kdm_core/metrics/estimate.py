"""A figure and how far chance may have moved it.

A replicate of the bootstrap is the figure of as many samples drawn, with replacement, from those
there are. Means and kernel distances are computed so. Fréchet and Wasserstein distances and scores
are given as their value and each sample's influence on it (Hampel 1974): how the value moves, to
first order, when that sample gets more weight. Their replicates are the value plus the influence of
what was drawn (the bootstrap of the linear part), for two reasons:

- Samples that are drawn twice inflate a metric that has a bias at finite n. A Fréchet distance of
  n samples is too large by about c / n, that of a resample by twice as much, which a shift mends;
  but its spread is too large as well, by half at n = 8 d and threefold at n < 2 d, and nothing
  mends that. The linear part covers the truth there as it should, and is the same where n is far
  above d (tests/kdm_core/metrics/test_coverage.py).
- 200 replicates are one product of matrices, not 200 covariances and roots, or sortings.

Intervals are about the samples of the set that is judged: another such set of the same size would
have another value. The reference is taken as it is, as in published figures.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdm_core.errors import DataError

Array = NDArray[np.float64]
Counts = NDArray[np.int32]


class Estimate(NamedTuple):
    """A figure.

    Attributes:
        value: as measured.
        replicates: (B,) bootstrap replicates; (0,) where none were asked for.
        n: how many samples it comes from; 0 for a count or a speed.
    """

    value: float
    replicates: Array
    n: int

    def centred(self) -> Array:
        """The replicates, moved so that their median is the value: their bias is the bootstrap's.

        The median, since those of a ratio over a small number have a few that are far off.
        """
        if not len(self.replicates):
            return self.replicates
        return np.asarray(self.replicates - np.median(self.replicates) + self.value)

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """The centred replicates' quantiles that hold `level` of them; None without replicates."""
        if not len(self.replicates):
            return None
        low, high = np.quantile(self.centred(), [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


def resampling(n: int, replicates: int, seed: int) -> Counts:
    """How often each of n samples is drawn in each replicate, (B, n); a function of all three.

    Figures of the same samples, or of two models on the same noise, are compared fairly when they
    share one of these.
    """
    generator = np.random.default_rng(seed)
    counts = np.empty((replicates, n), dtype=np.int32)
    for row in counts:
        row[:] = np.bincount(generator.integers(n, size=n), minlength=n)
    return counts


def certain(value: float) -> Estimate:
    """A figure that comes from no samples, such as a count or a speed."""
    return Estimate(float(value), np.empty(0), 0)


def linear_estimate(value: float, influence: NDArray[np.floating], counts: Counts) -> Estimate:
    """The estimate of a figure that n samples have this influence on.

    Args:
        value: the figure.
        influence: (n,) of each sample, in the figure's unit: the derivative of the figure to the
            sample's share of the weight. Only differences count.
        counts: (B, n) as from `resampling`.

    Raises:
        DataError: there are no samples, or the counts are those of another number of them.
    """
    n = len(influence)
    check_counts(n, counts)
    moves = counts @ (influence - influence.mean()) / n
    return Estimate(float(value), value + np.asarray(moves, dtype=np.float64), n)


def check_counts(n: int, counts: Counts) -> None:
    """Make sure that there are samples, and counts of as many.

    Raises:
        DataError: there are not.
    """
    if n == 0 or counts.shape[1] != n:
        raise DataError(f"a figure of {n} samples cannot be resampled by counts of shape "
                        f"{counts.shape}: give it samples, and counts of as many")


def mean_estimate(values: NDArray[np.generic], counts: Counts) -> Estimate:
    """The mean of values (n,), each of which is its own influence.

    Raises:
        DataError: as `linear_estimate`.
    """
    numbers = np.asarray(values, dtype=np.float64)
    return linear_estimate(numbers.mean() if len(numbers) else 0.0, numbers, counts)


def ratio(a: Estimate, b: Estimate) -> Estimate | None:
    """a / b; replicates that share their resamples are paired.

    None where b is not positive, as an unbiased distance may be that is lost in its own noise. No
    replicates where those of b reach zero: the ratio has then no bounds.
    """
    if b.value <= 0:
        return None
    above, below = a.centred(), b.centred()
    paired = len(above) == len(below) and bool((below > 0).all())
    replicates = above / below if paired else np.empty(0)
    return Estimate(a.value / b.value, replicates, min(a.n, b.n))
