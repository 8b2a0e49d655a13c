"""Pairs of others as a store holds them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdm_core.classes import find_order
from kdm_core.errors import DataError
from kdm_core.pairs.importing.source import PairSource, RawPairs
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import Block
from kdm_core.values import as_float, as_stored

# Samples of teachers leave [-1, 1] a little, and never that far.
FAR = 2.0


def convert(
    source: PairSource, spec: StoreSpec, scale: float, rows: NDArray[np.int64]
) -> Block:
    """Noise, which is divided by its scale, and samples in the store's types.

    Raises:
        DataError: a pair is damaged, not finite, or unlike the others; the message names it.
    """
    raw = source.read(rows)
    require_finite(source, raw, rows)
    noise = (raw.noise / np.float32(scale)).astype(np.float32)
    require_variance(source, noise, scale, rows)
    sample = raw.sample
    if source.kind == "image" and sample.dtype != np.uint8:
        require_near(source, sample, rows)
    if sample.dtype != spec.sample_dtype:
        sample = as_stored(as_float(sample), spec.sample_dtype).numpy()
    return Block(noise.astype(spec.noise_dtype), sample, numbered(source, spec, raw.label), rows)


def numbered(
    source: PairSource, spec: StoreSpec, labels: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Labels in the store's numbers, which are the teacher's."""
    order, _ = find_order(source.label_names, spec.samples.label_names)
    assert order is not None, "the import was planned for these classes"
    return np.array(order, np.int64)[labels] if order != sorted(order) else labels


def require_finite(source: PairSource, raw: RawPairs, rows: NDArray[np.int64]) -> None:
    """Raises: DataError: a value is not finite; the message names its file."""
    for name, values in (("noise", raw.noise), ("sample", raw.sample)):
        bad = ~np.isfinite(values.reshape(len(rows), -1)).all(1)
        if bad.any():
            raise DataError(f"{source.where(int(rows[bad.argmax()]))}: its {name} has values that "
                            "are not finite: remove it")


def require_variance(
    source: PairSource, noise: NDArray[np.float32], scale: float, rows: NDArray[np.int64]
) -> None:
    """Raises: DataError: the noise of a pair has not variance 1; the message names its file."""
    flat = noise.reshape(len(rows), -1)
    deviations = np.square(flat).mean(1) ** 0.5
    # Eight standard errors.
    odd = np.abs(deviations - 1) > 8 / (2 * flat.shape[1]) ** 0.5 + 0.01
    if odd.any():
        first = int(odd.argmax())
        raise DataError(f"{source.where(int(rows[first]))}: its noise has standard deviation "
                        f"{deviations[first] * scale:.4g}, that of the others is {scale:.4g}: it "
                        "is no pair of the same teacher, remove it")


def require_near(source: PairSource, samples: NDArray[Any], rows: NDArray[np.int64]) -> None:
    """Raises: DataError: an image is far from [-1, 1]; the message names its file."""
    far = np.abs(samples.reshape(len(rows), -1)).max(1) > FAR
    if far.any():
        raise DataError(f"{source.where(int(rows[far.argmax()]))}: its sample has values beyond "
                        f"{FAR:g}, images must lie in [-1, 1]: convert or remove it")
