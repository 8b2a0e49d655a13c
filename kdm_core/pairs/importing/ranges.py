"""The range of images that are floats: most of their values say it, or the user does."""

import numpy as np
from numpy.typing import NDArray

from kdm_core.datasets.base import DARK
from kdm_core.errors import DataError, adapted
from kdm_core.pairs.importing.source import PairSource, RawPairs, SampleRange

BOUNDS: dict[SampleRange, tuple[float, float]] = {
    "signed": (-1.0, 1.0), "unit": (0.0, 1.0), "bytes": (0.0, 255.0)}
# One value in a hundred may be anything. Of the others those of [-1, 1] lie beyond it by no more
# than MARGIN and go down to BELOW at least; what does not may be [0, 1] or [-0.5, 0.5] that was
# left a little.
SHARE, MARGIN, BELOW = 0.01, 0.1, -0.6
LEVEL = 1 / 127.5


class RangedSource(PairSource):
    """Pairs whose samples are floats in a range that the user names; they are read in [-1, 1]."""

    def __init__(self, inner: PairSource, given: SampleRange) -> None:
        """
        Raises:
            DataError: the samples are no images.
        """
        if inner.kind != "image":
            raise DataError("points have none, leave it out", field="sample_range")
        self.inner, self.given, self.sample_range = inner, given, given
        self.kind, self.count, self.shape = inner.kind, inner.count, inner.shape
        self.labels, self.label_names, self.numbered = (inner.labels, inner.label_names,
                                                        inner.numbered)
        self.layout = inner.layout if given == "signed" else f"{inner.layout}, {given} samples"

    def read(self, rows: NDArray[np.int64]) -> RawPairs:
        raw = self.inner.read(rows)
        if raw.sample.dtype.kind != "f":
            raise DataError(f"the samples are {raw.sample.dtype} and not floats, leave it out",
                            field="sample_range")
        low, high = BOUNDS[self.given]
        sample = raw.sample.astype(np.promote_types(raw.sample.dtype, np.float32))
        return raw._replace(sample=(sample - low) * (2 / (high - low)) - 1)

    def where(self, row: int) -> str:
        return self.inner.where(row)


def require_range(source: PairSource, samples: NDArray[np.floating]) -> None:
    """Make sure that images are in [-1, 1], but for a few values and a little.

    Args:
        source: where they are from; its range, if it has one, is believed as far as it may be true.
        samples: as it reads them.

    Raises:
        DataError: they are not, or may be in [0, 1] as well.
    """
    given = source.sample_range
    low, high = BOUNDS[given or "signed"]
    least, greatest = in_files(source, np.quantile(samples, [SHARE, 1 - SHARE]))
    span = f"98 % of the samples' values lie between {least:.4g} and {greatest:.4g}"
    outside = (np.abs(samples) > 1 + MARGIN).mean() > SHARE
    if given is None and (samples < BELOW).mean() < SHARE and greatest <= BOUNDS["bytes"][1] * 1.05:
        raise DataError(f"{span}; images must lie in [-1, 1], and these may be in another range: "
                        "say unit if they are in [0, 1], bytes if in [0, 255], signed if in "
                        "[-1, 1] nevertheless; convert them from another", field="sample_range")
    if given is None and outside:
        raise DataError(f"{span}; images must lie in [-1, 1]: convert them first, or correct the "
                        "order if these are the noise", field="sample_range")
    if outside:
        raise DataError(f"{span}, and not in [{low:g}, {high:g}], which is {given}: correct it",
                        field="sample_range")
    brightest = samples.reshape(len(samples), -1).max(1)
    if given not in (None, "signed") and np.quantile(brightest, 1 - SHARE) < 2 * DARK / 255 - 1:
        raise DataError(f"{span}, and {given} is [{low:g}, {high:g}], of which these images use an "
                        "eighth at most: correct it, or convert them", field="sample_range")


def tell_range(source: PairSource, samples: NDArray[np.floating]) -> None:
    """Say it if images leave their range by as much as a level of eight bits."""
    if np.abs(samples).max() > 1 + LEVEL:
        least, greatest = in_files(source, np.array([samples.min(), samples.max()]))
        low, high = BOUNDS[source.sample_range or "signed"]
        adapted(f"samples from {least:.4g} to {greatest:.4g} are taken as in [{low:g}, {high:g}]; "
                "as uint8 they are clipped to it")


def in_files(source: PairSource, values: NDArray[np.floating]) -> tuple[float, float]:
    """Two values of [-1, 1] as the source's files have them."""
    low, high = BOUNDS[source.sample_range or "signed"]
    least, greatest = low + (values.astype(np.float64) + 1) / 2 * (high - low)
    return float(least), float(greatest)
