"""Fréchet distances against closed forms and other implementations; statistics files; estimates."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import linalg

from kdm_core.errors import DataError, MismatchError
from kdm_core.metrics.estimate import (
    Estimate,
    certain,
    linear_estimate,
    mean_estimate,
    ratio,
    resampling,
)
from kdm_core.metrics.extrapolation import extrapolate, samples_needed
from kdm_core.metrics.frechet import (
    Gaussian,
    factor,
    fit_gaussian,
    frechet_distance,
    frechet_estimate,
    read_statistics,
)
from kdm_core.vision import import_torchvision


def random_gaussian(seed: int, d: int, rank: int) -> Gaussian:
    generator = np.random.default_rng(seed)
    factor = generator.standard_normal((d, rank))
    return Gaussian(generator.standard_normal(d), factor @ factor.T / rank, 100)


def with_roots(a: Gaussian, b: Gaussian) -> float:
    """The distance by scipy's general matrix square root."""
    root = linalg.sqrtm(a.covariance @ b.covariance).real
    return float(((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root))


def test_frechet_of_commuting_gaussians() -> None:
    """For covariances with the same eigenvectors: Σ (m₁ − m₂)² + Σ (s₁ − s₂)²."""
    generator = np.random.default_rng(0)
    turn = np.linalg.qr(generator.standard_normal((50, 50)))[0]
    deviations, means = generator.uniform(0.1, 3, (2, 50)), generator.standard_normal((2, 50))
    a, b = (Gaussian(m, turn * s**2 @ turn.T, 10) for m, s in zip(means, deviations, strict=True))
    expected = ((means[0] - means[1]) ** 2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("rank", [40, 10])
def test_frechet_against_a_general_matrix_root(rank: int) -> None:
    """scipy's sqrtm of the product, also for singular covariances."""
    a, b = random_gaussian(0, 30, rank), random_gaussian(1, 30, 40)
    assert frechet_distance(a, b) == pytest.approx(with_roots(a, b), rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(with_roots(a, b), rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_frechet_against_a_general_matrix_root_at_512_dimensions() -> None:
    """benchmarks/frechet.py does so at 2048, and takes the time of both."""
    a, b = random_gaussian(0, 512, 1500), random_gaussian(1, 512, 1500)
    assert frechet_distance(a, b) == pytest.approx(with_roots(a, b), rel=1e-6)


def test_frechet_is_that_of_clean_fid() -> None:
    import_torchvision()  # which clean-fid does, too, but not beside every build of torch
    from cleanfid import fid

    a, b = random_gaussian(0, 30, 40), random_gaussian(1, 30, 40)
    expected = fid.frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_frechet_needs_finite_samples_of_the_same_dimensions() -> None:
    with pytest.raises(DataError, match="finite"):
        fit_gaussian(np.array([[np.nan, 0.0], [1.0, 2.0]]))
    with pytest.raises(DataError, match="two samples"):
        fit_gaussian(np.zeros((1, 3)))
    with pytest.raises(MismatchError, match="30 dimensions .* 20"):
        frechet_distance(random_gaussian(0, 30, 40), random_gaussian(0, 20, 40))


@pytest.mark.parametrize("n", [200, 20])  # more and fewer samples than dimensions
def test_influence_is_the_derivative(n: int) -> None:
    """The estimate equals the plain distance, its replicates the distance of reweighted samples.

    Compared to first order: weights are moved by a thousandth of what resampling moves them.
    """
    generator = np.random.default_rng(0)
    x, reference = generator.standard_normal((n, 30)) * 1.2 + 0.2, random_gaussian(1, 30, 40)
    counts = resampling(n, 5, 0)
    found = frechet_estimate(x, reference, factor(reference.covariance), counts)
    assert found.value == pytest.approx(frechet_distance(fit_gaussian(x), reference), rel=1e-9)
    for count, replicate in zip(counts, found.replicates, strict=True):
        moved = []
        for sign in (1, -1):
            weights = (1 + sign * 1e-3 * (count - 1)) / n
            mean = weights @ x
            scatter = (x - mean).T @ ((x - mean) * weights[:, None]) * n / (n - 1)
            moved.append(frechet_distance(Gaussian(mean, scatter, n), reference))
        assert replicate - found.value == pytest.approx((moved[0] - moved[1]) / 2e-3, rel=0.02)


def test_extrapolation_meets_the_distance_of_the_distributions() -> None:
    """10 dimensions, 1000 samples: the distance is biased by 0.03, its limit is not."""
    generator = np.random.default_rng(0)
    reference = Gaussian(np.zeros(10), np.eye(10), 0)
    plain, limits = [], []
    for seed in range(60):
        x = 1.1 * generator.standard_normal((1000, 10))
        whole = frechet_estimate(x, reference, np.eye(10), np.empty((0, 1000), np.int32))
        found = extrapolate(x, reference, np.eye(10), whole, seed)
        assert found is not None
        assert found.n == [1000, 500, 250, 125] and found.distances[0] == whole.value
        assert found.distances == sorted(found.distances)
        plain.append(whole.value)
        limits.append(found.infinite.value)
    noise = np.std(limits) / 60**0.5
    assert abs(np.mean(limits) - 10 * 0.1**2) < 3 * noise < abs(np.mean(plain) - 10 * 0.1**2) / 3
    assert np.std(limits) < 1.2 * np.std(plain)  # the fit adds no noise to speak of


def test_extrapolation_needs_samples() -> None:
    generator = np.random.default_rng(0)
    reference, counts = Gaussian(np.zeros(5), np.eye(5), 0), np.empty((0, 39), np.int32)
    x = generator.standard_normal((39, 5))
    assert samples_needed(5) == 40
    whole = frechet_estimate(x, reference, np.eye(5), counts)
    assert extrapolate(x, reference, np.eye(5), whole, 0) is None


@pytest.fixture
def statistics(tmp_path: Path) -> Path:
    gaussian = random_gaussian(0, 6, 10)
    np.savez(tmp_path / "statistics.npz", mu=gaussian.mean, sigma=gaussian.covariance)
    return tmp_path / "statistics.npz"


def test_statistics_are_read_as_they_were_written(statistics: Path) -> None:
    found, expected = read_statistics(statistics), random_gaussian(0, 6, 10)
    assert (found.mean == expected.mean).all() and (found.covariance == expected.covariance).all()
    assert found.n == 0


@pytest.mark.parametrize("arrays, message", [
    ({"mu": np.zeros(3)}, "no array"),
    ({"mu": np.zeros(3), "sigma": np.eye(2)}, r"shape \(3,\) and sigma of shape \(2, 2\)"),
    ({"mu": np.zeros((3, 1)), "sigma": np.eye(3)}, "shape"),
    ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, "shape"),
    ({"mu": np.array([0, np.nan]), "sigma": np.eye(2)}, "not finite"),
    ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [0.0, 1.0]])}, "not symmetric"),
    ({"mu": np.zeros(2), "sigma": -np.eye(2)}, "negative"),
    ({"mu": np.array(["a", "b"]), "sigma": np.eye(2)}, "not a readable"),
    ({"mu": np.array([{}, {}], dtype=object), "sigma": np.eye(2)}, "not a readable"),
])
def test_bad_statistics_are_named(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=f"bad.npz.*{message}"):
        read_statistics(path)


def test_missing_and_pickled_statistics_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing"):
        read_statistics(tmp_path / "none.npz")
    pickle = tmp_path / "edm2.pkl"
    pickle.write_bytes(b"\x80\x04N.")
    with pytest.raises(DataError, match="pickles are refused"):
        read_statistics(pickle)


@given(where=st.floats(0, 1), cut=st.booleans(), flip=st.integers(1, 255))
@settings(max_examples=60)
def test_damaged_statistics_are_an_error_or_the_statistics(
    tmp_path_factory: pytest.TempPathFactory, where: float, cut: bool, flip: int
) -> None:
    """Cut off, or with one byte changed: never another exception, never other numbers."""
    expected = random_gaussian(0, 6, 10)
    path = tmp_path_factory.mktemp("damaged") / "statistics.npz"
    np.savez(path, mu=expected.mean, sigma=expected.covariance)
    content = bytearray(path.read_bytes())
    place = min(int(where * len(content)), len(content) - 1)
    if cut:
        del content[place:]
    else:
        content[place] ^= flip
    path.write_bytes(content)
    try:
        found = read_statistics(path)
    except DataError:
        return
    assert (found.mean == expected.mean).all() and (found.covariance == expected.covariance).all()


def test_interval_is_centred_and_holds_its_share() -> None:
    replicates = np.linspace(10, 20, 1001)
    low, high = Estimate(1.0, replicates, 5).interval(0.9) or (0, 0)
    assert (low, high) == pytest.approx((1 - 4.5, 1 + 4.5))
    assert certain(1.0).interval() is None


@given(arrays(np.float64, st.integers(2, 300), elements=st.floats(-1e6, 1e6)))
def test_a_figure_lies_in_its_interval(replicates: np.ndarray) -> None:
    """However skewed the replicates are, as those of a ratio over a small number."""
    low, high = Estimate(1.0, replicates, 5).interval() or (2, 2)
    slack = 1e-9 * (1 + np.abs(replicates).max())
    assert low - slack <= 1.0 <= high + slack


def test_resampling_draws_with_replacement() -> None:
    counts = resampling(50, 400, 3)
    assert counts.shape == (400, 50) and (counts.sum(axis=1) == 50).all()
    assert (counts == resampling(50, 400, 3)).all() and (counts != resampling(50, 400, 4)).any()
    assert counts.mean(axis=0) == pytest.approx(np.ones(50), abs=0.25)
    assert counts.var() == pytest.approx(1 - 1 / 50, rel=0.05)


def test_mean_replicates_are_means_of_resamples() -> None:
    values = np.random.default_rng(0).standard_normal(30)
    counts = resampling(30, 7, 0)
    found = mean_estimate(values, counts)
    expected = [np.repeat(values, count).mean() for count in counts]
    assert found.value == pytest.approx(values.mean())
    assert found.replicates == pytest.approx(np.array(expected))


def test_counts_of_other_samples_are_an_error() -> None:
    with pytest.raises(DataError, match="30 samples"):
        linear_estimate(0.0, np.zeros(30), resampling(20, 5, 0))
    with pytest.raises(DataError, match="0 samples"):
        mean_estimate(np.empty(0), resampling(20, 5, 0))


def test_ratio_is_paired() -> None:
    """What both share does not widen the interval: b is a up to a factor."""
    a = mean_estimate(np.random.default_rng(0).uniform(0, 2, 100), resampling(100, 50, 0))
    b = Estimate(a.value / 2, a.replicates / 2, 100)
    found = ratio(a, b)
    assert found is not None
    assert found.value == pytest.approx(2) and found.interval() == pytest.approx((2, 2))
    assert a.interval() != pytest.approx((a.value, a.value), rel=0.05)


def test_ratio_to_what_may_be_zero_has_no_bounds() -> None:
    a = Estimate(1.0, np.array([0.9, 1.1]), 10)
    lost = ratio(a, Estimate(0.1, np.array([-0.1, 0.3]), 10))
    assert lost is not None and lost.value == pytest.approx(10) and lost.interval() is None
    assert ratio(a, Estimate(-0.1, np.array([-0.2, 0.0]), 10)) is None
