"""Power-function averages and how to make one from snapshots of others.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models"
(arXiv:2312.02696), section 3 and appendix C. An average of exponent γ over t steps weighs the
weights after step k = 1 … t by

    p(k; γ, t) = (k^(γ+1) − (k−1)^(γ+1)) / t^(γ+1),

the integral of the paper's profile, proportional to τ^γ, from k−1 to k. The recursion
average ← β average + (1 − β) weights with β = (1 − 1/k)^(γ+1) gives exactly these weights, so
that all here is exact for discrete steps, too.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CHUNK = 65536
"""Steps whose weights are in memory at once."""


def exponent(sigma_rel: float) -> float:
    """γ of the profile whose standard deviation is `sigma_rel` times its length.

    Args:
        sigma_rel: in (0, 12^(−1/2)]; the largest is that of the uniform average, γ = 0.
    """
    # (γ+1) (γ+2)^−2 (γ+3)^−1 = sigma_rel², which falls with γ ≥ 0, as a polynomial in γ.
    rest = 1 / sigma_rel**2
    return float(max(np.roots([1.0, 7.0, 16.0 - rest, 12.0 - rest]).real.max(), 0.0))


def decay(gamma: float, step: int) -> float:
    """β of the recursion at the update after step `step`, counted from 1."""
    return float((1 - 1 / step) ** (gamma + 1))


def weights(gamma: float, length: int, steps: NDArray[np.int64]) -> Array:
    """p(k; γ, length) for every k of `steps`; 0 after `length`."""
    last = np.minimum(steps / length, 1.0)
    first = np.minimum((steps - 1) / length, 1.0)
    result: Array = last ** (gamma + 1) - first ** (gamma + 1)
    return result


def synthesis(
    snapshots: Sequence[tuple[float, int]], wanted: Sequence[float], length: int
) -> Array:
    """Factors by which snapshots of averages add up to averages of other widths.

    They minimise the squared difference of the weights that the sum and the wanted average give
    to the weights of each step, among all factors whose sum is 1.

    Args:
        snapshots: (sigma_rel, steps averaged over) of each; the last one over `length` steps.
        wanted: sigma_rel of the averages to be made.
        length: steps that these are over.

    Returns:
        (wanted, snapshots) float64; exactly one 1 where the wanted average is a snapshot.
    """
    known = [(exponent(sigma_rel), steps) for sigma_rel, steps in snapshots]
    targets = [(exponent(sigma_rel), length) for sigma_rel in wanted]
    # The rows of the problem are steps, of which there may be a million: they are folded into a
    # triangular factor as they come. The last snapshot is subtracted from all other columns and
    # takes what the other factors leave of 1.
    triangle: Array = np.zeros((0, len(known) - 1 + len(targets)))
    for start in range(1, length + 1, CHUNK):
        steps = np.arange(start, min(start + CHUNK, length + 1))
        columns = np.stack([weights(*profile, steps) for profile in (*known, *targets)], axis=1)
        base = columns[:, len(known) - 1, None]
        rows = np.delete(columns - base, len(known) - 1, axis=1)
        triangle = np.asarray(np.linalg.qr(np.concatenate([triangle, rows]), mode="r"))
    free = len(known) - 1
    factors = np.linalg.lstsq(triangle[:, :free], triangle[:, free:], rcond=None)[0].T
    result: Array = np.concatenate([factors, 1 - factors.sum(axis=1, keepdims=True)], axis=1)
    for row, sigma_rel in zip(result, wanted, strict=True):
        if (sigma_rel, length) in snapshots:
            row[:] = 0
            row[list(snapshots).index((sigma_rel, length))] = 1
    return result
