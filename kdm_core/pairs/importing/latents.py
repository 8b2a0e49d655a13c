"""Latents of an autoencoder, which no file tells from images that are floats: the user says it."""

import numpy as np
from numpy.typing import NDArray

from kdm_core.errors import DataError
from kdm_core.pairs.importing.source import PairSource, RawPairs, require_samples


class LatentSource(PairSource):
    """Pairs whose samples are latents, in whatever range."""

    kind = "latent"

    def __init__(self, inner: PairSource) -> None:
        """
        Raises:
            DataError: the samples are points, or no floats.
        """
        if inner.kind != "image":
            raise DataError("points are none, leave it out", field="latents")
        self.inner = inner
        self.count, self.shape, self.labels = inner.count, inner.shape, inner.labels
        self.label_names, self.numbered = inner.label_names, inner.numbered
        self.layout = f"{inner.layout}, latents"

    def read(self, rows: NDArray[np.int64]) -> RawPairs:
        raw = self.inner.read(rows)
        require_samples(raw.sample.dtype, self.kind, self.where(int(rows[0])))
        return raw

    def where(self, row: int) -> str:
        return self.inner.where(row)
