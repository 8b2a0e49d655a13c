"""What is measured of the pairs of others, before they are stored."""

import hashlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdm_core.datasets.base import standard_deviation, tell_dark
from kdm_core.errors import DataError
from kdm_core.pairs.importing.converting import require_finite, require_near
from kdm_core.pairs.importing.ranges import require_range, tell_range
from kdm_core.pairs.importing.source import PairSource, require_samples

# Of the pairs that are looked at beforehand, spread evenly over all: their deviation is then known
# to 0.04 %.
MEASURED_VALUES = 2**22
# Of teachers of EDM, and of flow matching and of points.
USUAL = (80.0, 1.0)


class Measured(NamedTuple):
    """What was found in some of the pairs.

    Attributes:
        deviation: of all values of the noise.
        sigma_data: of all values of the samples.
        content: SHA-256 of these pairs.
    """

    deviation: float
    sigma_data: float
    content: str


def measured_rows(source: PairSource) -> NDArray[np.int64]:
    """The rows that are looked at, ascending."""
    count = min(source.count, max(MEASURED_VALUES // int(np.prod(source.shape)), 1))
    return np.linspace(0, source.count - 1, count).astype(np.int64)


def measure(source: PairSource) -> Measured:
    """Look at some of the pairs.

    Raises:
        DataError: the noise is not normal, or samples are out of range.
    """
    rows = measured_rows(source)
    raw = source.read(rows)
    require_finite(source, raw, rows)
    deviation = require_normal(source, raw.noise.astype(np.float64).ravel())
    require_samples(raw.sample.dtype, source.kind, source.where(0))
    sigma_data = standard_deviation(raw.sample)
    if not sigma_data:
        raise DataError(f"{source.where(0)} and others: all values of all samples are the same")
    if raw.sample.dtype == np.uint8:
        tell_dark(raw.sample, f"{source.where(0)} and others")
    elif source.kind == "image":
        require_range(source, raw.sample)
        require_near(source, raw.sample, rows)
        tell_range(source, raw.sample)
    digest = hashlib.sha256()
    for values in raw:
        digest.update(f"{values.dtype.str} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).data)
    return Measured(deviation, sigma_data, digest.hexdigest())


def require_normal(source: PairSource, noise: NDArray[np.float64]) -> float:
    """The standard deviation of noise (n,).

    Raises:
        DataError: these are no normal values of mean 0.
    """
    deviation = standard_deviation(noise)
    if not deviation:
        raise DataError(f"{source.where(0)}: all noise is {noise[0]:.5g}")
    mean, kurtosis = noise.mean() / deviation, ((noise - noise.mean()) ** 4).mean() / deviation**4
    # Six standard errors of each.
    if (abs(mean) > 6 * noise.size**-0.5 + 0.01
            or abs(kurtosis - 3) > 6 * (24 / noise.size) ** 0.5 + 0.05):
        raise DataError(f"{source.where(0)} and others: the noise has standard deviation "
                        f"{deviation:.5g}, mean {mean * deviation:.5g} and kurtosis "
                        f"{kurtosis:.3g}, normal noise 0 and 3: these are no pairs of one teacher, "
                        "or sample and noise are exchanged", field="order")
    return deviation


def find_scale(
    source: PairSource, measured: Measured, given: float | None, start: float | None
) -> float:
    """What the noise is to be divided by.

    Args:
        source: the pairs.
        measured: of them.
        given: by the user, who is believed if it may be that.
        start: standard deviation of the state that the teacher's solver starts from, if known; this
            or another usual one is taken in place of a measured one that is near.

    Raises:
        DataError: the noise would not have variance 1.
    """
    found = measured.deviation
    if given is None:
        usual = USUAL if start is None else (start, *USUAL)
        near = [scale for scale in usual if abs(found / scale - 1) < tolerance(source) / 2]
        return near[0] if near else float(f"{found:.6g}")
    if abs(found / given - 1) > tolerance(source):
        raise DataError(f"the noise has standard deviation {found:.5g}, and not {given:.5g}: "
                        "correct it, or the order if these are the samples", field="noise_scale")
    return given


def tolerance(source: PairSource) -> float:
    """How far the measured deviation of noise of variance 1 may be from 1."""
    values = len(measured_rows(source)) * int(np.prod(source.shape))
    return float(0.01 + 6 / (2 * values) ** 0.5)
