"""The pairs that the authors of Koopman Distillation Models publish (arXiv:2505.13358).

A folder of .npz files with one pair each, whose arrays are states of the teacher's ODE: the first
and last row are noise and sample. Which is which depends on the name of the array:

    endpoints   sample first, noise last, with a one-hot `label` (CIFAR-10, conditional)
    arr1        sample first, noise last (CIFAR-10, flow matching)
    arr_0       noise first (CIFAR-10) or sample first (FFHQ, AFHQv2); the one with the large
                standard deviation is the noise, which is 80 for teachers of EDM

Points are one .npy file of shape (states, n, D), noise first (checkerboard).
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdm_core.datasets.base import unlabelled
from kdm_core.datasets.channels import require_channels_first
from kdm_core.datasets.listing import pass_over
from kdm_core.datasets.npy import (
    MAX_FILE,
    NpyFile,
    damage,
    parse_npz,
)
from kdm_core.datasets.reading import read_limited
from kdm_core.errors import DataError
from kdm_core.pairs.importing.listing import of_kind, walk
from kdm_core.pairs.importing.source import PairSource, RawPairs, kind_of, require_floats

Order = Literal["auto", "noise-first", "sample-first"]
KEYS = ("endpoints", "arr1", "arr_0")
THREADS = 8
# Deviations beyond this are noise of teachers of EDM, and below it samples.
LARGE = 5.0


class PublishedFolder(PairSource):
    """A folder of .npz files with one pair each."""

    def __init__(self, folder: Path, order: Order) -> None:
        """
        Raises:
            DataError: there are none, or the first one is of another layout.
        """
        self.folder = folder
        names = walk(folder)
        self.files = of_kind(names, ".npz")
        if not self.files:
            raise DataError(f"{folder} holds no .npz files")
        pass_over(sorted(set(names).difference(self.files)), len(self.files), ".npz files",
                  str(folder))
        self.count = len(self.files)
        found = self.load(self.files[0])
        self.key = self.key_of(found, self.files[0])
        states, label = found[self.key], found.get("label")
        self.shape = states.shape[1:]
        require_channels_first(self.shape, self.where(0))
        self.kind = kind_of(self.shape, self.files[0])
        self.label_names = [] if label is None else [str(i) for i in range(label.size)]
        self.noise_first = self.find_order(states, order)
        side = "first" if self.noise_first else "last"
        self.layout = f"published pairs, array {self.key} with the noise {side}"

    def find_order(self, states: NDArray[Any], order: Order) -> bool:
        """Whether the noise is the first row."""
        if order != "auto":
            return order == "noise-first"
        if self.key != "arr_0":
            return False
        first, last = float(states[0].std()), float(states[-1].std())
        if (first > LARGE) == (last > LARGE):
            raise DataError(f"{self.where(0)}: the first and last row of arr_0 have standard "
                            f"deviations {first:.3g} and {last:.3g}, which does not tell noise "
                            "from sample: say noise-first or sample-first", field="order")
        return first > last

    def load(self, name: str) -> dict[str, NDArray[Any]]:
        path = self.folder / name
        content = read_limited(path, MAX_FILE)
        with damage(path):
            return parse_npz(content, (*KEYS, "label"))

    def key_of(self, found: dict[str, NDArray[Any]], name: str) -> str:
        """The name of the states, if they are states."""
        keys = [key for key in KEYS if key in found]
        if len(keys) != 1 or found[keys[0]].ndim < 2 or len(found[keys[0]]) < 2:
            raise DataError(f"{self.folder / name} has none of the arrays {', '.join(KEYS)} with "
                            "two states or more, or several: it is no published pair")
        require_floats(found[keys[0]].dtype, f"{self.folder / name}")
        return keys[0]

    def read_one(self, name: str) -> tuple[NDArray[Any], NDArray[Any], int]:
        found = self.load(name)
        key = self.key_of(found, name)
        states = found[key]
        labelled = "label" in found
        if key != self.key or states.shape[1:] != self.shape or labelled != bool(self.label_names):
            raise DataError(f"{self.folder / name} holds {key} of shape {states.shape} "
                            f"{'with' if labelled else 'without'} label, unlike the first file, "
                            f"{self.files[0]}: move it away, one store holds pairs of one kind")
        label = self.class_of(found["label"], name) if labelled else -1
        ends = (states[0], states[-1])
        noise, sample = ends if self.noise_first else ends[::-1]
        # Copies, that do not keep the states between them.
        return noise.copy(), sample.copy(), label

    def class_of(self, label: NDArray[Any], name: str) -> int:
        """The class that a one-hot vector names."""
        values = label.ravel()
        hot = np.flatnonzero(values)
        if values.size != len(self.label_names) or len(hot) != 1 or values[hot[0]] != 1:
            raise DataError(f"{self.folder / name}: its label is no one-hot vector of "
                            f"{len(self.label_names)} classes")
        return int(hot[0])

    def read(self, rows: NDArray[np.int64]) -> RawPairs:
        # Threads, since the files of a network disk are waited for one by one.
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(self.read_one, [self.files[row] for row in rows]))
        noise, sample, label = zip(*found, strict=True)
        return RawPairs(np.stack(noise), np.stack(sample), np.array(label, np.int64))

    def where(self, row: int) -> str:
        return str(self.folder / self.files[row])


class PublishedPoints(PairSource):
    """One .npy file of points on their ways."""

    def __init__(self, path: Path, order: Order) -> None:
        """
        Raises:
            DataError: it is missing, damaged or of another shape.
        """
        self.path, self.states = path, NpyFile(path)
        shape = self.states.shape
        if len(shape) != 3 or shape[0] < 2 or 0 in shape:
            raise DataError(f"{path}: an array of shape {shape}, expected (states, points, "
                            "dimensions) with two states or more")
        require_floats(self.states.dtype, str(path))
        self.ends = (-1, 0) if order == "sample-first" else (0, -1)
        self.count, self.kind, self.shape = shape[1], "points", shape[2:]
        self.label_names = []
        self.layout = f"published points, {shape[0]} states"

    def read(self, rows: NDArray[np.int64]) -> RawPairs:
        noise, sample = (np.asarray(self.states.values[end, rows]) for end in self.ends)
        return RawPairs(noise, sample, unlabelled(len(rows)))

    def where(self, row: int) -> str:
        return f"{self.path}: point {row}"


