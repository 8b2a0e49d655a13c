"""One set against a reference, by every metric that applies, under its bare name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kdm_core.errors import DataError
from kdm_core.metrics.estimate import Array, Counts, Estimate, mean_estimate, resampling
from kdm_core.metrics.extrapolation import Extrapolation, extrapolate, samples_needed
from kdm_core.metrics.features import Features
from kdm_core.metrics.frechet import (
    Gaussian,
    check_dimensions,
    factor,
    fit_gaussian,
    frechet_estimate,
)
from kdm_core.metrics.inception_score import SPLITS, inception_score
from kdm_core.metrics.kernel import CPU, discrepancy, polynomial, self_similarity
from kdm_core.metrics.manifold import (
    DENSITY_K,
    Neighbourhoods,
    indicators,
    neighbourhoods,
    subset,
)
from kdm_core.metrics.points import Points, energy_distance, sliced_wasserstein

PROTOCOL = 50_000
"""Samples that published Fréchet distances come from."""


@dataclass(frozen=True, eq=False)
class Reference:
    """What sets are compared with. What only it takes is computed once, when first needed.

    Attributes:
        gaussian: mean and covariance of the features.
        features: (n, d); None where only a statistics file is known.
        name: what it is, for messages: "train split".
        n: how many samples it comes from; 0 where that is not known.
        seed: of the random samples that neighbourhoods are limited to.
        device: where distances are computed.
    """

    gaussian: Gaussian
    features: NDArray[np.floating] | None
    name: str
    n: int
    seed: int = 0
    device: torch.device = CPU

    @cached_property
    def root(self) -> Array:
        """`factor` of the covariance."""
        return factor(self.gaussian.covariance)

    @cached_property
    def similarity(self) -> float:
        """The mean of KID's kernel over all pairs; only where there are features."""
        assert self.features is not None
        return self_similarity(polynomial, self.features, self.device)

    @cached_property
    def neighbourhoods(self) -> Neighbourhoods:
        """Of at most `manifold.LIMIT` samples; only where there are features."""
        assert self.features is not None
        rows = subset(len(self.features), self.seed)
        return neighbourhoods(self.features[rows], self.device)


def reference_of(
    features: NDArray[np.floating], name: str, seed: int = 0, device: torch.device = CPU
) -> Reference:
    """The reference that features (n, d) make.

    Raises:
        DataError: fewer than two features, or values that are not finite.
    """
    check_set(features, name)
    return Reference(fit_gaussian(features), features, name, len(features), seed, device)


class Comparison(NamedTuple):
    """Figures under their bare names, and Fréchet distances at several n where they could be had.
    """

    estimates: dict[str, Estimate]
    extrapolation: Extrapolation | None


def compare_features(
    made: Features, reference: Reference, counts: Counts, seed: int
) -> Comparison:
    """Every figure of a set that its features, the reference and its size allow for.

    fd; fd_infinity with `samples_needed`; kd, and from 6 samples on precision, recall, density and
    coverage, where the reference has features; is, where the extractor classifies, from 10 on.

    Args:
        made: features (n, d) of the set.
        reference: what it is compared with.
        counts: (B, n) as from `resampling`; sets that share noise share them.
        seed: of random subsets, and of the resampling of real samples (recall, coverage).

    Raises:
        DataError: the set has fewer than two samples, or values that are not finite.
        MismatchError: the reference has another number of dimensions.
    """
    check_set(made.features, "the set that is compared")
    check_dimensions(made.features.shape[1], reference.gaussian.mean.size)
    distance = frechet_estimate(made.features, reference.gaussian, reference.root, counts)
    estimates = {"fd": distance}
    extrapolation = extrapolate(
        made.features, reference.gaussian, reference.root, distance, seed)
    if extrapolation is not None:
        estimates["fd_infinity"] = extrapolation.infinite
    if made.probabilities is not None and len(made.probabilities) >= SPLITS:
        estimates["is"] = inception_score(made.probabilities, counts)
    if reference.features is not None:
        estimates["kd"] = discrepancy(polynomial, made.features, reference.features,
                                      reference.similarity, counts, reference.device)
        if min(len(made.features), len(reference.features)) > DENSITY_K:
            estimates |= compare_neighbourhoods(made.features, reference, counts, seed)
    return Comparison(estimates, extrapolation)


def left_out(made: Features, reference: Reference) -> list[str]:
    """Which figures `compare_features` has not of such a set, and why; but for fd_infinity, of
    which `reliability` says so."""
    reasons, n = [], len(made.features)
    if made.probabilities is not None and n < SPLITS:
        reasons.append(f"no score, which takes {SPLITS} samples: there are {n}")
    if reference.features is None:
        reasons.append("no kernel distance, precision, recall, density or coverage, which take "
                       f"features: {reference.name} has their mean and covariance alone")
    elif min(n, reference.n) <= DENSITY_K:
        reasons.append(f"no precision, recall, density or coverage, which take {DENSITY_K + 1} "
                       f"samples of either side: there are {n} and {reference.n}")
    return reasons


def compare_neighbourhoods(
    made: NDArray[np.floating], reference: Reference, counts: Counts, seed: int
) -> dict[str, Estimate]:
    """Precision and density, resampled over made samples; recall and coverage, over real ones."""
    rows, real = subset(len(made), seed), reference.neighbourhoods
    found = indicators(neighbourhoods(made[rows], reference.device), real)
    # The part of a resample that is looked at is a resample of that part.
    made_counts = counts if len(rows) == len(made) else resampling(len(rows), len(counts), seed)
    real_counts = resampling(len(real.features), len(counts), seed)
    return {"precision": mean_estimate(found.precision, made_counts),
            "recall": mean_estimate(found.recall, real_counts),
            "density": mean_estimate(found.density, made_counts),
            "coverage": mean_estimate(found.coverage, real_counts)}


def compare_points(
    made: Points, real: Points, counts: Counts, seed: int, projections: int,
    on_support: Callable[[Points], NDArray[np.bool_]] | None = None,
) -> dict[str, Estimate]:
    """sliced_wasserstein and energy_distance between points (n, D) and (m, D); on_support.

    Args:
        made, real: the points.
        counts: (B, n) as from `resampling`.
        seed: of the directions.
        projections: how many directions the sliced distance takes.
        on_support: which points (n,) lie where the distribution is not zero, if that is known.

    Raises:
        DataError: a set has fewer than two points, or values that are not finite.
        MismatchError: the points have different dimensions.
    """
    check_set(made, "the set that is compared")
    check_set(real, "the reference")
    check_dimensions(made.shape[1], real.shape[1])
    estimates = {
        "sliced_wasserstein": sliced_wasserstein(made, real, projections, seed, counts),
        "energy_distance": energy_distance(made, real, counts),
    }
    if on_support is not None:
        estimates["on_support"] = mean_estimate(on_support(made), counts)
    return estimates


def check_set(values: NDArray[np.floating], name: str) -> None:
    """Make sure that there is something to measure.

    Raises:
        DataError: there are fewer than two samples, or values that are not finite.
    """
    if values.ndim != 2 or len(values) < 2 or values.shape[1] == 0:
        raise DataError(f"{name}: values of shape {values.shape}, expected (n, d) with at least "
                        "two samples: supply more")
    if broken := int((~np.isfinite(values)).any(axis=1).sum()):
        raise DataError(f"{name}: {broken} of {len(values)} samples have values that are not "
                        "finite: whatever made them diverged, repair that")


def reliability(n: int, dim: int) -> list[str]:
    """What is to be said of a Fréchet distance between n samples of so many dimensions."""
    remarks = []
    if n <= dim:
        remarks.append(f"{n:,} samples are no more than the {dim:,} dimensions of the features: "
                       "the Fréchet distance mostly shows that, and is not reliable")
    if n < samples_needed(dim):
        remarks.append(f"{n:,} samples of {dim:,} dimensions are too few to extrapolate the "
                       f"Fréchet distance to infinitely many, which takes {samples_needed(dim):,}")
    if n < PROTOCOL:
        remarks.append(f"{n:,} samples are fewer than the {PROTOCOL:,} of published figures: "
                       "Fréchet distances are too large in comparison with them")
    return remarks
