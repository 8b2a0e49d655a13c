"""The Fréchet distance between Gaussians fitted to features (Heusel et al. 2017)."""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdm_core.errors import DataError, MismatchError
from kdm_core.metrics.estimate import Array, Counts, Estimate, linear_estimate

ROWS = 4096
"""Samples that are worked on at once."""
MAX_DIM = 16_384
"""Of published statistics; a covariance of that size takes 2 GiB."""
NEGLIGIBLE = 1e-10
"""Eigenvalues below this share of the largest are those of directions without samples."""


class Gaussian(NamedTuple):
    """Mean (d,) and covariance (d, d) of features, and how many they come from (0: unknown)."""

    mean: Array
    covariance: Array
    n: int


def fit_gaussian(features: NDArray[np.floating]) -> Gaussian:
    """Mean and unbiased covariance of features (n, d), in float64.

    Raises:
        DataError: fewer than two features, or values that are not finite.
    """
    x = features.astype(np.float64)
    if x.ndim != 2 or len(x) < 2 or not np.isfinite(x).all():
        raise DataError(f"features of shape {x.shape}: a Fréchet distance needs at least two "
                        "samples and finite values")
    return Gaussian(x.mean(axis=0), np.cov(x, rowvar=False).reshape(x.shape[1], x.shape[1]), len(x))


def read_statistics(path: Path) -> Gaussian:
    """The Gaussian of a statistics file as clean-fid and EDM publish them: npz, `mu` and `sigma`.

    Nothing in the file is executed: pickles, such as EDM2's, are refused.

    Raises:
        DataError: it is missing or damaged, or its arrays are not a mean and a covariance.
    """
    if not zipfile.is_zipfile(path):  # else numpy would take it for an .npy file or a pickle
        raise DataError(f"{path} is missing, cut off, or not an .npz file (pickles are refused): "
                        "fetch it again, or save its mu and sigma with numpy.savez")
    arrays = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in ("mu", "sigma"):
                if archive.zip.getinfo(f"{name}.npy").file_size > 8 * MAX_DIM**2 + 4096:
                    raise DataError(f"{path}: '{name}' is too large for {MAX_DIM} dimensions: "
                                    "supply statistics of fewer")
                arrays[name] = np.asarray(archive[name], dtype=np.float64)
    except DataError:
        raise
    except KeyError as error:
        raise DataError(f"{path} has no array 'mu' or 'sigma': supply statistics as clean-fid "
                        "or EDM publish them") from error
    except Exception as error:  # numpy, zipfile and zlib raise a dozen kinds on damaged files
        raise DataError(f"{path} is not a readable .npz file of plain arrays "
                        f"({type(error).__name__}: {error}): fetch it again") from error
    _check_statistics(path, arrays["mu"], arrays["sigma"])
    return Gaussian(arrays["mu"], arrays["sigma"], 0)


def _check_statistics(path: Path, mean: Array, covariance: Array) -> None:
    d = mean.size
    if mean.ndim != 1 or d == 0 or covariance.shape != (d, d):
        problem = f"mu of shape {mean.shape} and sigma of shape {covariance.shape}"
    elif not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        problem = "values that are not finite"
    elif not np.allclose(covariance, covariance.T, rtol=1e-5, atol=1e-8):
        problem = "a sigma that is not symmetric"
    elif covariance.diagonal().min() < 0:
        problem = "a sigma with negative variances"
    else:
        return
    raise DataError(f"{path} has {problem}, expected a mean (d,) and a covariance (d, d): "
                    "fetch it again, or compute it anew")


def factor(covariance: Array) -> Array:
    """A matrix F (d, d) with F Fᵀ = S, for a positive semi-definite S."""
    try:
        return np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)
    except np.linalg.LinAlgError:  # S is singular: fewer samples than dimensions
        values, vectors = np.linalg.eigh(covariance)
        return np.asarray(vectors * np.sqrt(values.clip(min=0)))


def frechet_distance(a: Gaussian, b: Gaussian, root: Array | None = None) -> float:
    """‖m₁ − m₂‖² + tr(S₁ + S₂ − 2 (S₁ S₂)^½).

    S₁ S₂ has the eigenvalues of Fᵀ S₁ F, where F Fᵀ = S₂: a symmetric problem, so there are no
    complex parts to drop and no offset to add when a covariance is singular, unlike with a general
    matrix square root; and it takes a tenth of the time or less (benchmarks/frechet.py).

    Args:
        root: `factor(b.covariance)`, where it is known already.

    Raises:
        MismatchError: the Gaussians have different dimensions.
    """
    check_dimensions(a.mean.size, b.mean.size)
    root = factor(b.covariance) if root is None else root
    values = np.linalg.eigvalsh(root.T @ a.covariance @ root)
    cross = np.sqrt(values.clip(min=0)).sum()
    distance = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance) + np.trace(b.covariance)
    return float(distance - 2 * cross)


def frechet_estimate(
    features: NDArray[np.floating], reference: Gaussian, root: Array, counts: Counts
) -> Estimate:
    """The distance of features (n, d) from a Gaussian that is taken as it is, with replicates.

    A sample x of a set with mean m and covariance S has the influence
    2 (m − μ)·(x − m) + n / (n − 1) · (x − m)ᵀ (1 − T) (x − m), where T = F (Fᵀ S F)^-½ Fᵀ carries
    S to the reference's covariance F Fᵀ, as optimal transport does. That takes some 4 n d² + 20 d³
    operations in all: at n = 5000, 0.02 s for d = 64 and 0.3 s for d = 512 on one core, whatever
    the number of replicates. To compute 200 replicates by reweighting takes 0.2 s and 7 s.

    Args:
        features: of the samples, any floating type.
        reference: what they are compared with.
        root: `factor` of the reference's covariance, computed once for all sets.
        counts: (B, n) as from `resampling`.

    Raises:
        DataError: fewer than two features, or values that are not finite.
        MismatchError: the reference has another number of dimensions.
    """
    fitted = fit_gaussian(features)
    check_dimensions(fitted.mean.size, reference.mean.size)
    shift = fitted.mean - reference.mean
    values, vectors = np.linalg.eigh(root.T @ fitted.covariance @ root)
    distance = (shift**2).sum() + np.trace(fitted.covariance) + np.trace(reference.covariance)
    value = distance - 2 * np.sqrt(values.clip(min=0)).sum()
    kept = values > NEGLIGIBLE * values[-1]
    transport = root @ (vectors[:, kept] / values[kept] ** 0.25)
    influence = np.empty(len(features))
    for start in range(0, len(features), ROWS):
        x = features[start : start + ROWS] - fitted.mean
        spread = (x**2).sum(axis=1) - ((x @ transport) ** 2).sum(axis=1)
        influence[start : start + ROWS] = 2 * x @ shift + spread * fitted.n / (fitted.n - 1)
    return linear_estimate(value, influence, counts)


def check_dimensions(found: int, expected: int) -> None:
    """Make sure that features have the reference's dimensions.

    Raises:
        MismatchError: they have not.
    """
    if found != expected:
        raise MismatchError(f"features of {found} dimensions cannot be compared with a reference "
                            f"of {expected}: take the reference's extractor and its layer for both")
