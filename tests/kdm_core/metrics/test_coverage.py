"""Intervals cover the truth: 200 simulated sets each, 95 % intervals, 90 to 99 % of them right.

What an interval is about: the expectation at this n for figures that depend on n (Fréchet and
sliced Wasserstein distances, scores), that of the distributions for the others.
"""

from collections.abc import Callable

import numpy as np
import pytest

from kdm_core.metrics.estimate import Counts, Estimate, mean_estimate, resampling
from kdm_core.metrics.extrapolation import extrapolate
from kdm_core.metrics.frechet import Gaussian, factor, frechet_estimate
from kdm_core.metrics.inception_score import inception_score
from kdm_core.metrics.kernel import discrepancy, negative_distance, polynomial, self_similarity
from kdm_core.metrics.manifold import indicators, neighbourhoods
from kdm_core.metrics.points import sliced_wasserstein

REPEATS, REPLICATES = 200, 300
Measure = Callable[[np.ndarray, Counts], Estimate]


def repeated(measure: Measure, draw: Callable[[np.random.Generator], np.ndarray]) -> list[Estimate]:
    """The figure of sets that are drawn independently, each with its own resampling."""
    found = []
    for seed in range(REPEATS):
        samples = draw(np.random.default_rng([1, seed]))
        found.append(measure(samples, resampling(len(samples), REPLICATES, seed)))
    return found


def coverage(estimates: list[Estimate], truth: float | None = None) -> float:
    """Share of the intervals that hold the truth; by default the mean of what was measured."""
    truth = float(np.mean([e.value for e in estimates])) if truth is None else truth
    intervals = [estimate.interval() or (0.0, 0.0) for estimate in estimates]
    return float(np.mean([low <= truth <= high for low, high in intervals]))


CASES = {
    # dimensions, samples, mean, variance of each dimension; the reference has 0 and 1
    "far apart": (4, 200, 0.5, np.full(4, 1.3)),
    "spectrum that decays": (16, 500, 0.3, 1.2 / np.arange(1, 17)),
    "few samples": (16, 130, 0.3, np.full(16, 1.2)),
    "nearly the same": (4, 400, 0.1, np.ones(4)),
}


@pytest.mark.parametrize("case", CASES)
def test_intervals_of_frechet_distances_and_their_limits(case: str) -> None:
    d, n, mean, variances = CASES[case]
    shift = np.zeros(d)
    shift[0] = mean
    scale = np.ones(d) if case != "spectrum that decays" else 1 / np.arange(1, d + 1)
    reference = Gaussian(np.zeros(d), np.diag(scale), 0)
    root = factor(reference.covariance)
    limits: list[Estimate] = []

    def measure(x: np.ndarray, counts: Counts) -> Estimate:
        whole = frechet_estimate(x, reference, root, counts)
        found = extrapolate(x, reference, root, whole, seed=0)
        assert found is not None
        limits.append(found.infinite)
        return whole

    distances = repeated(
        measure, lambda g: shift + g.standard_normal((n, d)) * np.sqrt(variances))
    assert 0.9 <= coverage(distances) <= 0.99
    truth = mean**2 + ((np.sqrt(variances) - np.sqrt(scale)) ** 2).sum()
    assert 0.9 <= coverage(limits, truth) <= 0.99


def test_intervals_of_frechet_distances_with_fewer_samples_than_dimensions() -> None:
    reference = Gaussian(np.zeros(16), np.eye(16), 0)
    distances = repeated(lambda x, counts: frechet_estimate(x, reference, np.eye(16), counts),
                         lambda g: 0.3 + 1.2 * g.standard_normal((12, 16)))
    assert 0.9 <= coverage(distances) <= 0.99


@pytest.mark.parametrize("mean", [0.0, 0.3])
def test_intervals_of_kernel_and_energy_distances(mean: float) -> None:
    """Of the distribution from the reference set: its expectation, from a set of 20,000."""
    generator = np.random.default_rng(0)
    real = generator.standard_normal((100, 2))
    large = mean + generator.standard_normal((20_000, 2))
    for kernel in (polynomial, negative_distance):
        similarity = self_similarity(kernel, real)
        truth = discrepancy(kernel, large, real, similarity, np.empty((0, 20_000), np.int32)).value

        def measure(
            x: np.ndarray, counts: Counts, kernel: Callable = kernel, similarity: float = similarity
        ) -> Estimate:
            return discrepancy(kernel, x, real, similarity, counts)

        estimates = repeated(measure, lambda g: mean + g.standard_normal((200, 2)))
        assert 0.9 <= coverage(estimates, truth) <= 0.99


@pytest.mark.parametrize("mean", [0.0, 0.3])
def test_intervals_of_sliced_wasserstein_distances(mean: float) -> None:
    real = np.random.default_rng(0).standard_normal((300, 2))
    estimates = repeated(lambda x, counts: sliced_wasserstein(x, real, 16, 0, counts),
                         lambda g: mean + g.standard_normal((300, 2)))
    assert 0.9 <= coverage(estimates) <= 0.99


def test_intervals_of_scores_and_shares() -> None:
    scores = repeated(inception_score, lambda g: g.dirichlet(np.full(5, 0.3), 400))
    assert 0.9 <= coverage(scores) <= 0.99
    shares = repeated(mean_estimate, lambda g: g.uniform(size=300) < 0.2)
    assert 0.9 <= coverage(shares, 0.2) <= 0.99


def test_intervals_of_precision_and_density() -> None:
    real = neighbourhoods(np.random.default_rng(0).standard_normal((100, 2)))

    def density(x: np.ndarray, counts: Counts) -> Estimate:
        return mean_estimate(indicators(neighbourhoods(x), real).density, counts)

    def precision(x: np.ndarray, counts: Counts) -> Estimate:
        return mean_estimate(indicators(neighbourhoods(x), real).precision, counts)

    for measure in (density, precision):
        estimates = repeated(measure, lambda g: 1.2 * g.standard_normal((200, 2)))
        assert 0.9 <= coverage(estimates) <= 0.99
