"""Noise and labels as a function of (seed, index).

Each pair has its own counter-based Philox generator, so the same values come out bit for bit
whatever the batch size, the number of workers, the order or the machine that asks.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def pair_generator(seed: int, index: int) -> np.random.Generator:
    """The generator of pair `index` in the stream `seed` (both non-negative)."""
    # The 256-bit counter of Philox4x64 is moved by 2^128 per pair: streams never overlap.
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, index, 0]))


def draw(
    seed: int,
    indices: Sequence[int] | NDArray[np.int64],
    shape: tuple[int, ...],
    dtype: str = "float32",
    num_classes: int = 0,
    label_weights: Sequence[int] | None = None,
) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
    """Unit-variance noise and labels of the pairs `indices`.

    Args:
        seed: the stream; a store has one.
        indices: the pairs' indices, (n,).
        shape: the shape of one sample, without the batch.
        dtype: "float16" or "float32"; values are rounded to it here, before any model sees them.
        num_classes: labels are in [0, num_classes); 0 means unlabelled.
        label_weights: whole numbers, one a class, in whose proportion labels are drawn; None draws
            them uniformly.

    Returns:
        Noise (n, *shape) of `dtype` and labels (n,) int64, all -1 when unlabelled.
    """
    noise = np.empty((len(indices), *shape), dtype=dtype)
    labels = np.full(len(indices), -1, dtype=np.int64)
    # Whole numbers, so that no rounding decides between two classes.
    ends = np.cumsum(np.ones(num_classes, np.int64) if label_weights is None else label_weights)
    for row, index in enumerate(indices):
        generator = pair_generator(seed, int(index))
        noise[row] = generator.standard_normal(shape)
        # After the noise, as EDM's sampler does: the noise of a pair is then the same with
        # and without labels, whatever their law is.
        if num_classes:
            labels[row] = np.searchsorted(ends, generator.integers(ends[-1]), side="right")
    return noise, labels


def check_value(seed: int, shape: tuple[int, ...], dtype: str) -> str:
    """SHA-256 of the noise of pairs 0 to 15, in little-endian bytes.

    Numpy promises the bits of Philox for ever, and the normal values that it makes of them only
    as long as nobody finds better ones. A store that keeps no noise keeps this instead.
    """
    noise, _ = draw(seed, range(16), shape, dtype)
    return hashlib.sha256(noise.astype(noise.dtype.newbyteorder("<")).tobytes()).hexdigest()
