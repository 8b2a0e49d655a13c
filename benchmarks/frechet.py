"""A Fréchet distance by symmetric eigenvalues against one by a general matrix square root.

    python -m benchmarks.frechet [--dim 2048] [--rounds 2]

The second is that of clean-fid and pytorch-fid, scipy's sqrtm of the product of the covariances.
Both are given the same two Gaussians, of features that are correlated as a network's are, and must
agree to 1e-6. Then what 200 bootstrap replicates cost on top, and what they would by reweighting.
"""

import argparse
import time

import numpy as np

from benchmarks.timing import ratio, rounds
from kdm_core.metrics.estimate import resampling
from kdm_core.metrics.frechet import (
    Gaussian,
    factor,
    fit_gaussian,
    frechet_distance,
    frechet_estimate,
)


def by_sqrtm(a: Gaussian, b: Gaussian) -> float:
    from scipy.linalg import sqrtm

    root = sqrtm(a.covariance @ b.covariance).real
    return float(((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root))


def features(dim: int, n: int, seed: int) -> np.ndarray:
    """Positive features (n, dim) whose principal variances fall as 1 / k."""
    turn = np.random.default_rng(0).standard_normal((dim, dim)) / dim**0.5
    latent = np.random.default_rng(seed).standard_normal((n, dim)) / np.arange(1, dim + 1) ** 0.5
    return np.maximum(latent @ turn + 0.1, 0).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    made, real = (features(arguments.dim, arguments.samples, seed) for seed in (1, 2))
    a, b = fit_gaussian(made), fit_gaussian(real)
    ours, theirs = frechet_distance(a, b), by_sqrtm(a, b)
    print(f"d = {arguments.dim}: {ours:.8g}, by sqrtm {theirs:.8g}, "
          f"relative difference {abs(ours / theirs - 1):.1e}")
    if abs(ours / theirs - 1) > 1e-6:
        raise SystemExit("they do not agree to 1e-6")
    seconds = rounds({"ours": lambda: frechet_distance(a, b), "sqrtm": lambda: by_sqrtm(a, b)},
                     arguments.rounds)
    print(f"{np.median(seconds['ours']):.2f} s against {np.median(seconds['sqrtm']):.2f} s: "
          f"{ratio(seconds['sqrtm'], seconds['ours'])}")
    counts, root = resampling(arguments.samples, 200, 0), factor(b.covariance)
    start = time.perf_counter()
    frechet_estimate(made, b, root, counts)
    print(f"distance and 200 replicates of {arguments.samples} samples: "
          f"{time.perf_counter() - start:.2f} s")
    start = time.perf_counter()
    frechet_distance(fit_gaussian(np.repeat(made, counts[0], axis=0)), b, root)
    print(f"one replicate by resampling: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
