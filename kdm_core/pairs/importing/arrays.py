"""Pairs in one .npz file, and the noise perhaps in a file of its own.

Samples and labels are as `kdm_core.datasets.arrays` says, the samples uint8 images or floats. The
noise is the array `noise`, floats of the samples' shape; images' may have the channels first or
last as well.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdm_core.datasets.arrays import LabelledArrays, only
from kdm_core.datasets.channels import Channels, find_channels, with_channels_first
from kdm_core.datasets.npy import ArrayFile, NpyFile, NpzMember, npz_members
from kdm_core.errors import DataError, adapted
from kdm_core.pairs.importing.source import (
    NO_NOISE,
    PairSource,
    RawPairs,
    kind_of,
    oriented,
    require_floats,
    require_samples,
)


class ArraysSource(PairSource):
    """Pairs whose arrays are in one file or two."""

    labels: NDArray[np.int64]

    def __init__(self, path: Path, noise: Path | None, channels: Channels | None = None) -> None:
        """
        Raises:
            DataError: a file is missing, damaged, without noise or contradicts the other.
        """
        self.path = path
        arrays = LabelledArrays(path, others=["noise"])
        if noise is None and "noise" not in arrays.members:
            raise DataError(f"{path} holds none: give its file, or name its array noise; "
                            f"{NO_NOISE}", field="noise")
        if noise is not None and "noise" in arrays.members:
            adapted(f"{path}: the noise in {noise} is taken, and not the file's own array noise")
        self.noise = (NpzMember(path, arrays.members["noise"]) if noise is None else
                      open_noise(noise))
        self.samples, where = arrays.samples, f"{path}: {arrays.key}"
        self.samples.require_rows()
        inner = self.samples.shape[1:]
        self.channels = find_channels(inner, channels, where)
        self.shape = with_channels_first(np.empty((0, *inner)), self.channels).shape[1:]
        self.kind = kind_of(self.shape, str(path))
        self.count, self.labels = arrays.count, arrays.labels
        self.label_names, self.numbered = arrays.label_names, arrays.numbered
        self.check(channels)
        joined = "" if noise is None else ", the noise of another file by position"
        self.layout = f"one .npz file, array {arrays.key}{joined}"

    def check(self, channels: Channels | None) -> None:
        """Raises: DataError: samples and noise do not fit each other."""
        if not self.count:
            raise DataError(f"{self.path} holds no samples")
        require_floats(self.noise.dtype, str(self.path))
        if self.noise.shape[:1] != (self.count,):
            raise DataError(f"{self.path}: {self.count} samples and noise of shape "
                            f"{self.noise.shape}: give one noise for each sample")
        require_samples(self.samples.dtype, self.kind, str(self.path))
        # If the shape fits both, what is given for the samples counts for the noise as well.
        oriented(np.empty((0, *self.noise.shape[1:])), self.shape, "the noise", channels)

    def read(self, rows: NDArray[np.int64]) -> RawPairs:
        samples = with_channels_first(self.samples.read(rows), self.channels)
        noise = oriented(self.noise.read(rows), self.shape, "the noise", self.channels)
        return RawPairs(noise, samples, self.labels[rows])

    def where(self, row: int) -> str:
        return f"{self.path}: pair {row}"


def open_noise(path: Path) -> ArrayFile:
    """The noise (n, …) of many pairs, in an .npy file or as the only array of an .npz file.

    Raises:
        DataError: it is missing or damaged.
    """
    if path.suffix != ".npz":
        return NpyFile(path)
    members = npz_members(path)
    name = only(("noise", "arr_0"), members, path)
    if name is None:
        raise DataError(f"{path} has no array noise")
    return NpzMember(path, members[name])
