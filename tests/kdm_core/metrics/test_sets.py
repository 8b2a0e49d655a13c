"""Kernel distances, neighbourhoods, scores, paired figures and points, against direct computation.
"""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from kdm_core.errors import DataError, MismatchError
from kdm_core.losses.perceptual import LPIPS
from kdm_core.metrics import kernel
from kdm_core.metrics.compare import (
    Comparison,
    Reference,
    compare_features,
    compare_points,
    reference_of,
    reliability,
)
from kdm_core.metrics.estimate import Estimate, resampling
from kdm_core.metrics.features import Features
from kdm_core.metrics.frechet import fit_gaussian
from kdm_core.metrics.inception_score import inception_score
from kdm_core.metrics.kernel import discrepancy, polynomial, self_similarity
from kdm_core.metrics.manifold import indicators, neighbourhoods
from kdm_core.metrics.paired import label_accuracy, label_agreement, paired_lpips, paired_mse
from kdm_core.metrics.points import energy_distance, sliced_wasserstein
from kdm_core.vision import import_torchvision


def no_counts(n: int) -> np.ndarray:
    return np.empty((0, n), np.int32)


def features(seed: int, n: int, d: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)) + 0.3 * seed


def kernel_distance(made: np.ndarray, real: np.ndarray) -> Estimate:
    similarity = self_similarity(polynomial, real)
    return discrepancy(polynomial, made, real, similarity, no_counts(len(made)))


def test_kernel_distance_against_all_pairs() -> None:
    x, y = features(0, 40), features(1, 30)
    k = lambda a, b: (a @ b / 5 + 1) ** 3  # noqa: E731
    within = [np.mean([k(p, q) for i, p in enumerate(s) for j, q in enumerate(s) if i != j])
              for s in (x, y)]
    expected = within[0] + within[1] - 2 * np.mean([k(p, q) for p in x for q in y])
    assert kernel_distance(x, y).value == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_is_clean_fids_where_its_subset_is_the_whole_set() -> None:
    import_torchvision()
    from cleanfid import fid

    x, y = features(0, 300, 64), features(1, 300, 64)
    expected = fid.kernel_distance(x, y, num_subsets=1, max_subset_size=300)
    assert kernel_distance(x, y).value == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = features(0, 50), features(1, 40)
    whole = kernel_distance(x, y).value
    monkeypatch.setattr(kernel, "CELLS", 700)
    assert kernel_distance(x, y).value == pytest.approx(whole, rel=1e-12)


def test_float32_suffices_for_the_kernel_distance() -> None:
    """Of equal distributions, where the terms cancel most: 1 ‰ of the deviation at most."""
    x, y = (np.abs(features(0, 800, 256))[half] * 3 for half in (slice(400), slice(400, 800)))
    similarity = self_similarity(polynomial, y)
    exact = discrepancy(polynomial, x, y, similarity, resampling(400, 200, 0))
    x, y = x.astype(np.float32), y.astype(np.float32)
    rough = kernel_distance(x, y).value
    assert rough == pytest.approx(exact.value, abs=1e-3 * exact.replicates.std())


def test_neighbourhoods_against_a_direct_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    made, real = 2 * features(0, 60, 3), features(1, 50, 3)

    def radius(x: np.ndarray, k: int) -> np.ndarray:
        return np.sort(cdist(x, x), axis=1)[:, k]  # number 0 is the sample itself

    distances = cdist(made, real)
    near = distances <= radius(real, 3)
    far = distances <= radius(real, 5)
    monkeypatch.setattr("kdm_core.metrics.manifold.CELLS", 700)  # several chunks
    found = indicators(neighbourhoods(made), neighbourhoods(real))
    assert found.precision.tolist() == near.any(axis=1).tolist()
    assert found.recall.tolist() == (distances <= radius(made, 3)[:, None]).any(axis=0).tolist()
    assert found.density.tolist() == (far.sum(axis=1) / 5).tolist()
    assert found.coverage.tolist() == far.any(axis=0).tolist()
    assert all(0.1 < values.mean() < 1 for values in found)


def test_inception_score_at_its_extremes() -> None:
    sure = np.eye(5)[np.arange(1000) % 5]
    assert inception_score(sure, no_counts(1000)).value == pytest.approx(5, rel=1e-3)
    flat = np.full((1000, 5), 0.2)
    assert inception_score(flat, no_counts(1000)).value == pytest.approx(1)
    one = np.eye(5)[np.zeros(1000, int)]
    assert inception_score(one, no_counts(1000)).value == pytest.approx(1)
    with pytest.raises(DataError, match="9 samples"):
        inception_score(flat[:9], no_counts(9))


def reweighted(x: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    return [np.repeat(x, count, axis=0) for count in counts]


def spread_agrees(found: Estimate, exact: list[float]) -> None:
    """Replicates by influence move as those that compute the figure of each resample anew."""
    assert np.corrcoef(found.replicates, exact)[0, 1] > 0.97
    assert np.std(found.replicates) == pytest.approx(np.std(exact), rel=0.15)


def test_replicates_are_those_of_exact_resampling() -> None:
    generator = np.random.default_rng(0)
    counts = resampling(300, 60, 0)
    logits = 2 * generator.standard_normal((300, 4))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = inception_score(p, counts, splits=1)
    spread_agrees(found, [inception_score(r, no_counts(300), splits=1).value
                          for r in reweighted(p, counts)])
    x, y = features(0, 300, 2), features(1, 200, 2)
    found = sliced_wasserstein(x, y, 20, 0, counts)
    spread_agrees(found, [sliced_wasserstein(r, y, 20, 0, no_counts(300)).value
                          for r in reweighted(x, counts)])


def test_kernel_replicates_are_weighted_sums_over_pairs_of_different_samples() -> None:
    x, y = features(0, 12, 2), features(1, 9, 2)
    counts = resampling(12, 4, 0)
    found = energy_distance(x, y, counts)
    for count, replicate in zip(counts, found.replicates, strict=True):
        drawn = np.repeat(np.arange(12), count)
        pairs = [(i, j) for i in drawn for j in drawn if i != j]
        within = np.mean([np.linalg.norm(x[i] - x[j]) for i, j in pairs])
        expected = 2 * cdist(x[drawn], y).mean() - within - cdist(y, y).sum() / 72
        assert replicate == pytest.approx(expected, rel=1e-9)


def test_a_resample_of_one_sample_has_no_pairs_and_is_no_replicate() -> None:
    made, real = features(0, 2), features(1, 5)
    found = discrepancy(polynomial, made, real, self_similarity(polynomial, real),
                        np.array([[1, 1], [2, 0], [0, 2], [1, 1]], np.int32))
    assert np.isfinite(found.value)
    assert found.replicates.tolist() == [found.value, found.value]
    nothing = discrepancy(polynomial, made, real, 0.0, np.array([[2, 0]], np.int32))
    assert nothing.interval() is None


def test_score_in_splits_has_the_influence_of_all_of_them() -> None:
    """Reweighting within each of the splits, which plain resampling would mix."""
    p = np.random.default_rng(0).dirichlet(np.ones(4) / 2, 400)
    halves = [resampling(200, 60, seed) for seed in (0, 1)]
    found = inception_score(p, np.concatenate(halves, axis=1), splits=2)
    exact = [inception_score(np.concatenate([np.repeat(p[:200], a, axis=0),
                                             np.repeat(p[200:], b, axis=0)]),
                             no_counts(400), splits=2).value for a, b in zip(*halves, strict=True)]
    spread_agrees(found, exact)


def test_sliced_wasserstein_of_a_shift() -> None:
    """A shift by v moves every projection by v·θ; E (v·θ)² = ‖v‖² / 2 in the plane."""
    points = np.random.default_rng(0).standard_normal((4000, 2))
    shifted = points + np.array([3.0, 4.0])
    found = sliced_wasserstein(points, shifted, 2000, 0, no_counts(4000)).value
    assert found == pytest.approx(5 / 2**0.5, rel=0.03)
    assert sliced_wasserstein(points, points[::-1], 10, 0, resampling(4000, 3, 0)).value == 0


@pytest.mark.parametrize("flip", [False, True])
def test_sliced_wasserstein_of_sets_of_different_size(flip: bool) -> None:
    points = np.random.default_rng(0).standard_normal((500, 2))
    a, b = points, points.repeat(3, axis=0)
    a, b = (b, a) if flip else (a, b)
    found = sliced_wasserstein(a, b, 10, 0, no_counts(len(a))).value
    assert found == pytest.approx(0, abs=1e-9)


def test_energy_distance_against_all_pairs_and_scipy() -> None:
    from scipy.stats import energy_distance as of_scipy

    x, y = features(0, 40, 2), features(1, 30, 2)
    within = [cdist(s, s).sum() / (len(s) * (len(s) - 1)) for s in (x, y)]
    found = energy_distance(x, y, no_counts(40)).value
    assert found == pytest.approx(2 * cdist(x, y).mean() - sum(within), rel=1e-9)
    # scipy's, for numbers, is the root of the V-statistic.
    a, b = x[:, :1], y[:, :1]
    v = 2 * cdist(a, b).mean() - cdist(a, a).mean() - cdist(b, b).mean()
    assert of_scipy(a[:, 0], b[:, 0]) ** 2 == pytest.approx(v)
    u = v - cdist(a, a).mean() / 39 - cdist(b, b).mean() / 29
    assert energy_distance(a, b, no_counts(40)).value == pytest.approx(u, rel=1e-9)


def test_paired_mse() -> None:
    teacher = torch.arange(4.0).reshape(4, 1)
    found = paired_mse(teacher, teacher + 0.5, resampling(4, 20, 0))
    assert found.matched.value == pytest.approx(0.25)
    # All matching pairs are equally far apart, so it does not matter which are drawn.
    assert found.matched.interval() == pytest.approx((0.25, 0.25))
    # The student's samples move on by one: 3.5, 0.5, 1.5, 2.5 beside 0, 1, 2, 3.
    assert found.permuted.value == pytest.approx(np.mean([3.5**2, 0.5**2, 0.5**2, 0.5**2]))


class FirstPixel(LPIPS):
    """Measures images by the square of the difference of their first values."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def features(self, images: Tensor) -> list[Tensor]:
        return [images[:, :1, :1, :1]]


@pytest.mark.parametrize("batch", [2, 3, 50])
def test_paired_lpips_never_permutes_a_pair_onto_itself(batch: int) -> None:
    """Seven images and batches of three or two: no batch may hold a single pair."""
    teacher = torch.arange(7.0).reshape(7, 1, 1, 1)
    seen: list[int] = []
    found = paired_lpips(FirstPixel(), teacher, teacher, resampling(7, 5, 0), batch, seen.append)
    assert found.matched.value == 0 and found.permuted.value >= 1
    assert sum(seen) == 7 and min(seen) >= 2 and max(seen) <= max(batch, 3)


def test_pairs_must_belong_together() -> None:
    with pytest.raises(MismatchError, match="no pairs"):
        paired_mse(torch.zeros(4, 2), torch.zeros(3, 2), no_counts(4))
    with pytest.raises(DataError, match="1 pairs"):
        paired_mse(torch.zeros(1, 2), torch.zeros(1, 2), no_counts(1))


def test_label_figures() -> None:
    a, b = np.eye(3)[[0, 1, 2, 0]], np.eye(3)[[0, 1, 1, 1]]
    assert label_accuracy(a, np.array([0, 1, 2, 2]), no_counts(4)).value == 0.75
    assert label_agreement(a, b, no_counts(4)).value == 0.5
    with pytest.raises(MismatchError, match="3 labels"):
        label_accuracy(a, np.zeros(3, int), no_counts(4))


def compared(made: np.ndarray, reference: Reference, replicates: int = 20) -> Comparison:
    n = len(made)
    probabilities = np.full((n, 4), 0.25, np.float32)
    return compare_features(Features(made.astype(np.float32), probabilities), reference,
                            resampling(n, replicates, 0), seed=0)


def test_comparison_has_what_applies() -> None:
    everything = {"fd", "fd_infinity", "kd", "is", "precision", "recall", "density", "coverage"}
    reference = reference_of(features(1, 90).astype(np.float32), "train split")
    found = compared(features(0, 160), reference)
    assert found.estimates.keys() == everything
    assert all(estimate.interval() is not None for estimate in found.estimates.values())
    assert found.estimates["fd"].n == 160 and found.estimates["coverage"].n == 90
    assert found.extrapolation is not None and found.extrapolation.n == [160, 80, 40, 20]
    few = compared(features(0, 39), reference)
    assert few.estimates.keys() == everything - {"fd_infinity"} and few.extrapolation is None
    assert compared(features(0, 5), reference).estimates.keys() == {"fd", "kd"}
    published = Reference(fit_gaussian(features(1, 90)), None, "statistics.npz", 0)
    assert compared(features(0, 160), published).estimates.keys() == {"fd", "fd_infinity", "is"}


def test_comparison_at_more_samples_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = reference_of(features(0, 500, 2), "train split", seed=3)
    whole = compared(features(0, 600, 2)[100:], reference).estimates
    monkeypatch.setattr("kdm_core.metrics.manifold.LIMIT", 200)
    reference = reference_of(features(0, 500, 2), "train split", seed=3)
    limited = compared(features(0, 600, 2)[100:], reference).estimates
    assert limited["precision"].n == limited["recall"].n == 200 and whole["precision"].n == 500
    assert limited["fd"].value == whole["fd"].value
    assert limited["coverage"].value == pytest.approx(whole["coverage"].value, abs=0.15)


def test_comparison_names_what_is_wrong() -> None:
    reference = reference_of(features(0, 50), "train split")
    with pytest.raises(DataError, match="set that is compared.*two samples"):
        compared(features(0, 1), reference)
    with pytest.raises(DataError, match="set that is compared.*two samples"):
        compared(features(0, 0), reference)
    broken = features(0, 20)
    broken[3, 2], broken[7] = np.nan, np.inf
    with pytest.raises(DataError, match="2 of 20 samples"):
        compared(broken, reference)
    with pytest.raises(DataError, match="train split: 2 of 20"):
        reference_of(broken, "train split")
    with pytest.raises(MismatchError, match="4 dimensions .* 5"):
        compared(features(0, 20, 4), reference)
    with pytest.raises(MismatchError, match="2 dimensions .* 3"):
        compare_points(features(0, 20, 2), features(0, 20, 3), no_counts(20), 0, 8)
    with pytest.raises(DataError, match="2 of 20"):
        compare_points(broken, features(0, 20), no_counts(20), 0, 8)


def test_comparison_of_points() -> None:
    made, counts = features(0, 100, 2), resampling(100, 20, 0)
    found = compare_points(made, features(0, 80, 2), counts, 0, 16, lambda x: x[:, 0] > 0)
    assert found.keys() == {"sliced_wasserstein", "energy_distance", "on_support"}
    assert found["on_support"].value == (made[:, 0] > 0).mean()
    assert all(estimate.interval() is not None for estimate in found.values())
    assert compare_points(made, made, counts, 0, 16).keys() == found.keys() - {"on_support"}


def test_reliability_says_what_is_doubtful() -> None:
    assert reliability(50_000, 512) == []
    for n, count in ((4096, 1), (4095, 2), (513, 2), (512, 3)):
        remarks = reliability(n, 512)
        assert len(remarks) == count and all(remark.startswith(f"{n:,} ") for remark in remarks)
    assert "50,000" in remarks[2] and "extrapolate" in remarks[1] and "512 dim" in remarks[0]
