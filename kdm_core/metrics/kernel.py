"""The squared maximum mean discrepancy between two sets, without bias (Gretton et al. 2012).

With the polynomial kernel it is KID's distance (Bińkowski et al. 2018), over all pairs of samples
instead of random subsets of 1,000: the same expectation with less noise. With minus the Euclidean
distance as kernel it is the energy distance (Székely and Rizzo 2013).
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdm_core.compute import state_dtype
from kdm_core.metrics.estimate import Array, Counts, Estimate, check_counts

Kernel = Callable[[Tensor, Tensor], Tensor]
Samples = NDArray[np.floating]

CELLS = 2**22
"""Pairs of samples that are worked on at once; 32 MiB of float64."""
CPU = torch.device("cpu")


def polynomial(a: Tensor, b: Tensor) -> Tensor:
    """(x·y / d + 1)³ of all pairs of features (n, d) and (m, d)."""
    return (a @ b.T).div_(a.shape[1]).add_(1).pow_(3)


def negative_distance(a: Tensor, b: Tensor) -> Tensor:
    """−‖x − y‖ of all pairs of points (n, D) and (m, D)."""
    # Not through a matrix product, which loses the distances of close points.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").neg_()


def discrepancy(
    kernel: Kernel, made: Samples, reference: Samples, similarity: float, counts: Counts,
    device: torch.device = CPU,
) -> Estimate:
    """MMD² between made (n, d) and reference (m, d); it may be negative, being unbiased.

    Each replicate is the same figure of resampled `made`, in which no sample is paired with its own
    copies: those would add a bias, and noise of their own; a resample of one sample alone has no
    pairs then, and is no replicate. The kernel is computed once for all
    replicates, in the precision of `made`: a distance is a small difference of large sums, but the
    rounding of float32 has random signs, and is far below the noise
    (tests/kdm_core/metrics/test_sets.py). It takes 4 n (n + m) d + 2 B n² operations or so, and
    memory for a few times CELLS values.

    Args:
        similarity: `self_similarity` of the reference, computed once for all sets.
        counts: (B, n) as from `resampling`.
        device: where the kernel is computed.

    Raises:
        DataError: the counts are those of another number of samples.
    """
    n = len(made)
    check_counts(n, counts)
    weights = np.concatenate([np.ones((1, n)), counts])  # the first row gives the value
    pairs = n**2 - (weights**2).sum(axis=1)
    weights, pairs = weights[pairs > 0], pairs[pairs > 0]
    within = weighted_sums(kernel, made, weights, device) / pairs
    between = weights @ mean_similarity(kernel, made, reference, device) / n
    found = within + similarity - 2 * between
    return Estimate(float(found[0]), found[1:], n)


def self_similarity(kernel: Kernel, samples: Samples, device: torch.device = CPU) -> float:
    """The mean of the kernel over all pairs of different samples (n, d), n > 1."""
    n = len(samples)
    return float(weighted_sums(kernel, samples, np.ones((1, n)), device)[0] / (n * (n - 1)))


def weighted_sums(
    kernel: Kernel, samples: Samples, weights: Array, device: torch.device
) -> Array:
    """Σ w_i w_j k(x_i, x_j) over i ≠ j, for each of the weights (B, n), (B,)."""
    points, wide = on_device(samples, device), state_dtype(device)
    columns = torch.tensor(weights.T, dtype=wide, device=device)
    sums, rows = torch.zeros(len(weights), dtype=wide, device=device), max(1, CELLS // len(points))
    for start in range(0, len(points), rows):
        values = kernel(points[start : start + rows], points)
        values[:, start:].fill_diagonal_(0)
        sums += (values.to(wide) @ columns * columns[start : start + rows]).sum(dim=0)
    return sums.cpu().numpy().astype(np.float64)


def mean_similarity(
    kernel: Kernel, a: Samples, b: Samples, device: torch.device
) -> Array:
    """The mean of the kernel over b (m, d), for each of a (n, d)."""
    left, wide = on_device(a, device), state_dtype(device)
    right = on_device(b, device).to(left.dtype)
    means = [kernel(rows, right).mean(dim=1, dtype=wide)
             for rows in torch.split(left, max(1, CELLS // len(b)))]
    return torch.cat(means).cpu().numpy().astype(np.float64)


def on_device(samples: Samples, device: torch.device) -> Tensor:
    """A copy of float32 or float64 samples on a device that may have no float64."""
    dtype = torch.float32 if samples.dtype == np.float32 else state_dtype(device)
    return torch.tensor(samples, dtype=dtype, device=device)
