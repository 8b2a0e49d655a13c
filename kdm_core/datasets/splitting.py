"""Holding out a test split."""

import numpy as np
from numpy.typing import NDArray


def split_rows(
    labels: NDArray[np.int64], fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide samples into two splits, a function of (labels, fraction, seed) alone.

    Every class is divided in the same proportion, and has at least one sample in both splits; the
    single sample of a class is trained on.

    Args:
        labels: (n,) any integers; all the same for unlabelled samples.
        fraction: share of the test split, in (0, 1).
        seed: not negative.

    Returns:
        Row numbers of the training and of the test split, each in random order, so that the first
        few of them are a fair sample.
    """
    generator = np.random.default_rng(seed)
    train: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    test: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        held_out = min(max(int(fraction * len(rows) + 0.5), 1), len(rows) - 1)
        test.append(rows[:held_out])
        train.append(rows[held_out:])
    return (generator.permutation(np.concatenate(train)),
            generator.permutation(np.concatenate(test)))
