"""Whether two sets of samples have the same classes equally often.

Distances between sets (Fréchet, kernel, precision and recall) also measure how often each class
is: a perfect conditional model that is asked for other labels than the reference has is far from
it.
"""

import numpy as np
from numpy.typing import NDArray

LEAST = 0.03
"""Total variation below which two distributions of labels count as one."""
RESAMPLES = 999
"""A difference counts if none of so many random divisions of the same labels shows a larger one:
one of a thousand pairs of sets of one distribution would."""
NAMED = 5
"""Classes that a message names."""


def label_shift(first: NDArray[np.int64], second: NDArray[np.int64]) -> float | None:
    """Total variation between the labels of two sets: the share that would have to be others.

    Args:
        first, second: how many samples of each class (K,) the sets have, each at least one.

    Returns:
        The distance in (0, 1]; None where it is below `LEAST`, or no more than what two random
        sets of these sizes and of one distribution differ by (permutation test).
    """
    found = float(total_variation(first, second))
    if found < LEAST:
        return None
    both = first + second
    parts = np.random.default_rng(0).multivariate_hypergeometric(
        both, int(first.sum()), RESAMPLES, method="marginals")
    return found if found > total_variation(parts, both - parts).max() else None


def total_variation(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.float64]:
    """Half of the sum of absolute differences (…) of frequencies, given counts (…, K)."""
    one, two = (counts / counts.sum(axis=-1, keepdims=True) for counts in (first, second))
    distance: NDArray[np.float64] = np.abs(one - two).sum(axis=-1) / 2
    return distance


def in_words(
    first: NDArray[np.int64], second: NDArray[np.int64], names: list[str]
) -> str:
    """The frequencies that differ most: "zero 50.0% against 94.0%, one 50.0% against 6.0%"."""
    one, two = first / first.sum(), second / second.sum()
    order = np.argsort(-np.abs(one - two), kind="stable")[:NAMED]
    rest = len(names) - len(order)
    return (", ".join(f"{names[k]} {one[k]:.1%} against {two[k]:.1%}" for k in order)
            + (f", and {rest} more" if rest else ""))
