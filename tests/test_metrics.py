"""Metrics against closed forms and against other implementations."""

import numpy as np
import pytest
import torch
from scipy import linalg

from kdm_core.errors import DataError
from kdm_core.metrics.frechet import Gaussian, fit_gaussian, frechet_distance
from kdm_core.metrics.inception_score import inception_score
from kdm_core.metrics.paired import paired_mse
from kdm_core.metrics.points import sliced_wasserstein
from kdm_core.vision import import_torchvision


def random_gaussian(seed: int, d: int, rank: int) -> Gaussian:
    generator = np.random.default_rng(seed)
    factor = generator.standard_normal((d, rank))
    return Gaussian(generator.standard_normal(d), factor @ factor.T / rank, 100)


def test_frechet_of_commuting_gaussians() -> None:
    """For diagonal covariances: Σ (m₁ − m₂)² + Σ (s₁ − s₂)²."""
    a = Gaussian(np.array([0.0, 1.0]), np.diag([4.0, 9.0]), 10)
    b = Gaussian(np.array([3.0, 1.0]), np.diag([1.0, 16.0]), 10)
    assert frechet_distance(a, b) == pytest.approx(9 + 1 + 1, abs=1e-10)


@pytest.mark.parametrize("rank", [40, 10])
def test_frechet_against_a_general_matrix_root(rank: int) -> None:
    """scipy's sqrtm of the product, also for singular covariances."""
    a, b = random_gaussian(0, 30, rank), random_gaussian(1, 30, 40)
    root = linalg.sqrtm(a.covariance @ b.covariance).real
    expected = (((a.mean - b.mean) ** 2).sum()
                + np.trace(a.covariance + b.covariance - 2 * root))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_frechet_is_that_of_clean_fid() -> None:
    import_torchvision()  # which clean-fid does, too, but not beside every build of torch
    from cleanfid import fid

    a, b = random_gaussian(0, 30, 40), random_gaussian(1, 30, 40)
    expected = fid.frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_frechet_needs_finite_samples() -> None:
    with pytest.raises(DataError, match="finite"):
        fit_gaussian(np.array([[np.nan, 0.0], [1.0, 2.0]]))
    with pytest.raises(DataError, match="two samples"):
        fit_gaussian(np.zeros((1, 3)))


def test_inception_score_at_its_extremes() -> None:
    sure = np.eye(5)[np.arange(1000) % 5]
    assert inception_score(sure) == pytest.approx(5, rel=1e-3)
    assert inception_score(np.full((1000, 5), 0.2)) == pytest.approx(1)
    assert inception_score(np.eye(5)[np.zeros(1000, int)]) == pytest.approx(1)


def test_sliced_wasserstein_of_a_shift() -> None:
    """A shift by v moves every projection by v·θ; E (v·θ)² = ‖v‖² / 2 in the plane."""
    points = np.random.default_rng(0).standard_normal((4000, 2))
    found = sliced_wasserstein(points, points + np.array([3.0, 4.0]), projections=2000, seed=0)
    assert found == pytest.approx(5 / 2**0.5, rel=0.03)
    assert sliced_wasserstein(points, points[::-1], 10, 0) == pytest.approx(0, abs=1e-9)


def test_sliced_wasserstein_of_sets_of_different_size() -> None:
    points = np.random.default_rng(0).standard_normal((500, 2))
    assert sliced_wasserstein(points, points.repeat(3, axis=0), 10, 0) == pytest.approx(0, abs=1e-9)


def test_paired_figures() -> None:
    teacher = torch.arange(4.0).reshape(4, 1)
    found = paired_mse(teacher, teacher + 0.5)
    assert found.matched == pytest.approx(0.25)
    # The student's samples move on by one: 3.5, 0.5, 1.5, 2.5 beside 0, 1, 2, 3.
    assert found.permuted == pytest.approx(np.mean([3.5**2, 0.5**2, 0.5**2, 0.5**2]))
