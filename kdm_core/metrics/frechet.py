"""The Fréchet distance between two Gaussians fitted to features (Heusel et al. 2017)."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdm_core.errors import DataError

Array = NDArray[np.float64]


class Gaussian(NamedTuple):
    """Mean (d,) and covariance (d, d) of features, and how many they come from."""

    mean: Array
    covariance: Array
    n: int


def fit_gaussian(features: NDArray[np.floating]) -> Gaussian:
    """Mean and unbiased covariance of features (n, d), in float64.

    Raises:
        DataError: fewer than two features, or values that are not finite.
    """
    x = features.astype(np.float64)
    if len(x) < 2 or not np.isfinite(x).all():
        raise DataError(f"features of shape {x.shape}: a Fréchet distance needs at least two "
                        "samples and finite values")
    return Gaussian(x.mean(axis=0), np.cov(x, rowvar=False).reshape(x.shape[1], x.shape[1]), len(x))


def sqrt_psd(matrix: Array) -> Array:
    """The symmetric square root of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(values.clip(min=0))) @ vectors.T)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """‖m₁ − m₂‖² + tr(S₁ + S₂ − 2 (S₁ S₂)^½).

    tr (S₁ S₂)^½ = tr (S₁^½ S₂ S₁^½)^½, a symmetric problem: no complex parts to drop and no
    offset to add when a covariance is singular, unlike with a general matrix square root.
    """
    root = sqrt_psd(a.covariance)
    values = np.linalg.eigvalsh(root @ b.covariance @ root)
    cross = np.sqrt(values.clip(min=0)).sum()
    distance = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance) + np.trace(b.covariance)
    return float(distance - 2 * cross)
