"""Pairs in one .npz file, and the noise perhaps in a file of its own.

    arr_0 (images, samples)    uint8, (n, H, W, C), (n, C, H, W) or (n, H, W), as for FID
    sample                     uint8 or floats, (n, C, H, W), or points (n, D)
    arr_1 (label, labels, y)   integers (n,), from 0; may be absent
    noise                      floats, (n, C, H, W), (n, H, W, C) or (n, D)
    label_names (names)        strings; may be absent
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdm_core.datasets.base import (
    MAX_CLASSES,
    check_labels,
    check_names,
    numbered_classes,
    unlabelled,
)
from kdm_core.errors import DataError
from kdm_core.pairs.importing.npy import (
    STRINGS,
    ArrayFile,
    NpyFile,
    NpzMember,
    npz_members,
)
from kdm_core.pairs.importing.source import (
    NO_NOISE,
    PairSource,
    RawPairs,
    kind_of,
    oriented,
    require_floats,
)

SAMPLES = ("sample", "arr_0", "images", "samples")
LABELS = ("label", "arr_1", "labels", "y")
NAMES = ("label_names", "names")
CHANNELS = (1, 3)
MAX_LABELS = 2**32


class ArraysSource(PairSource):
    """Pairs whose arrays are in one file or two."""

    def __init__(self, path: Path, noise: Path | None) -> None:
        """
        Raises:
            DataError: a file is missing, damaged, without noise or contradicts the other.
        """
        self.path = path
        members = npz_members(path)
        key = only(SAMPLES, members, path)
        if key is None:
            raise DataError(f"{path} has none of the arrays {', '.join(SAMPLES)}")
        self.samples = NpzMember(path, members[key])
        if noise is None and "noise" not in members:
            raise DataError(f"{path} holds no noise: give its file with --noise; {NO_NOISE}")
        self.noise = (NpzMember(path, members["noise"]) if noise is None else
                      open_noise(noise))
        self.count = len_of(self.samples, str(path))
        self.channels_last, self.shape = sample_axes(self.samples.shape[1:], key)
        self.kind = kind_of(self.shape, str(path))
        self.labels, self.label_names = self.read_labels(members)
        self.check()
        joined = "" if noise is None else ", the noise of another file by position"
        self.layout = f"one .npz file, array {key}{joined}"

    def read_labels(self, members: dict[str, Any]) -> tuple[NDArray[np.int64], list[str]]:
        """All labels (n,), and the names of the classes."""
        key, where = only(LABELS, members, self.path), str(self.path)
        if key is None:
            return unlabelled(self.count), []
        file = NpzMember(self.path, members[key])
        if file.shape != (self.count,) or self.count * file.dtype.itemsize > MAX_LABELS:
            raise DataError(f"{where}: {key} has shape {file.shape}, expected ({self.count},), a "
                            "label for each sample")
        labels = file.read(np.arange(self.count))
        names = self.read_names(members)
        if not names and labels.dtype.kind in "iu":
            names = numbered_classes(labels, where)
        check_names(names, where)
        return check_labels(labels, self.count, len(names), where), names

    def read_names(self, members: dict[str, Any]) -> list[str]:
        """The names of the classes, if there are any."""
        key = only(NAMES, members, self.path)
        if key is None:
            return []
        file = NpzMember(self.path, members[key], STRINGS)
        if len(file.shape) != 1 or file.shape[0] > MAX_CLASSES:
            raise DataError(f"{self.path}: {key} has shape {file.shape}, expected a name for each "
                            "class")
        return [str(name) for name in file.read(np.arange(file.shape[0]))]

    def check(self) -> None:
        """Raises: DataError: samples and noise do not fit each other."""
        if self.samples.dtype != np.uint8 and self.samples.dtype.kind != "f":
            raise DataError(f"{self.path}: samples of type {self.samples.dtype}, expected uint8 or "
                            "floats")
        require_floats(self.noise.dtype, str(self.path))
        if len_of(self.noise, "the noise") != self.count:
            raise DataError(f"{self.path}: {self.count} samples and noise of shape "
                            f"{self.noise.shape}: give one noise for each sample")
        oriented(np.empty((0, *self.noise.shape[1:])), self.shape, "the noise")

    def read(self, rows: NDArray[np.int64]) -> RawPairs:
        samples = self.samples.read(rows)
        if self.channels_last:
            samples = np.moveaxis(samples, -1, 1)
        noise = oriented(self.noise.read(rows), self.shape, "the noise")
        return RawPairs(noise, samples.reshape(len(rows), *self.shape), self.labels[rows])

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


def only(aliases: tuple[str, ...], names: dict[str, Any], path: Path) -> str | None:
    """The one of `aliases` that is among `names`, if any.

    Raises:
        DataError: several are.
    """
    present = [name for name in aliases if name in names]
    if len(present) > 1:
        raise DataError(f"{path} has arrays {' and '.join(present)}, which mean the same: keep one")
    return present[0] if present else None


def sample_axes(shape: tuple[int, ...], key: str) -> tuple[bool, tuple[int, ...]]:
    """Whether samples (without their first axis) have channels last, and their shape then."""
    if len(shape) == 2:  # gray
        return False, (1, *shape)
    last = (len(shape) == 3 and key != "sample"
            and (shape[2] in CHANNELS or shape[0] not in CHANNELS))
    return last, (shape[2], *shape[:2]) if last else shape


def len_of(array: ArrayFile, where: str) -> int:
    """The number of entries."""
    if not array.shape or not array.shape[0]:
        raise DataError(f"{where}: an array of shape {array.shape} holds nothing")
    return array.shape[0]
