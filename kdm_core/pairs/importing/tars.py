"""Pairs in tar files, as `kdm_core.pairs.exporting.webdataset` writes them.

Members of one pair have the same name before the first dot of the file's: KEY.png or KEY.npy is the
sample, KEY.noise.npy the noise, KEY.cls the class, KEY.json may say its name (`label_name`); other
members are passed over, and a line says so. Nothing is unpacked to the disk.
"""

import json
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdm_core.datasets.base import check_labels, check_names
from kdm_core.datasets.channels import require_channels_first
from kdm_core.datasets.images import decode
from kdm_core.datasets.listing import is_left_behind, pass_over
from kdm_core.datasets.npy import MAX_FILE, damage, parse_npy
from kdm_core.errors import DataError, shown
from kdm_core.pairs.importing.listing import of_kind, walk
from kdm_core.pairs.importing.source import (
    NO_NOISE,
    PairSource,
    RawPairs,
    kind_of,
    oriented,
    require_floats,
)

SAMPLES = ("png", "npy")
ENDINGS = {*SAMPLES, "noise.npy", "cls", "json"}
MAX_TEXT = 65536


class Part(NamedTuple):
    """Where a member's content lies in its tar file."""

    start: int
    size: int


class TarSource(PairSource):
    """Pairs in a folder of tar files, or in one."""

    labels: NDArray[np.int64]

    def __init__(self, path: Path) -> None:
        """
        Raises:
            DataError: there are none, or a tar file is damaged or holds a pair in part.
        """
        files = [] if path.is_file() else walk(path)
        tars = of_kind(files, ".tar")
        self.tars = [path] if path.is_file() else [path / name for name in tars]
        self.keys: list[str] = []
        self.names: dict[int, str] = {}
        self.others = sorted(set(files).difference(tars))
        scanned = [self.scan(tar, number) for number, tar in enumerate(self.tars)]
        if not self.keys:
            raise DataError(f"{path} holds no pairs in tar files")
        self.count = len(self.keys)
        pass_over(self.others, self.count, "pairs", str(path))
        # A row a pair: tar file, whether an image, start and size of sample and of noise, label.
        self.entries = np.concatenate(scanned)
        self.labels, self.label_names = self.classes(str(path))
        self.numbered = not self.names
        first = self.pair(0)[1]
        self.shape, self.dtype = first.shape, first.dtype
        require_channels_first(self.shape, self.where(0))
        self.kind = kind_of(self.shape, self.where(0))
        self.layout = f"{len(self.tars)} tar files of a WebDataset, noise of the same key"

    def scan(self, tar: Path, number: int) -> NDArray[np.int64]:
        """Where the pairs of one tar file lie."""
        found: dict[str, dict[str, Part]] = {}
        names: dict[int, str] = {}
        with damage(tar), tarfile.open(tar, "r:") as archive, tar.open("rb") as file:
            size = tar.stat().st_size
            for member in archive:
                if member.isdir():
                    continue
                key, ending = split_name(member.name)
                if not member.isreg() or ending not in ENDINGS or is_left_behind(member.name):
                    self.others.append(member.name)
                    continue
                if member.issparse() or member.offset_data + member.size > size:
                    raise ValueError(f"{member.name} is cut off")
                parts = found.setdefault(key, {})
                if ending in parts:
                    raise ValueError(f"there are two members {member.name}")
                parts[ending] = Part(member.offset_data, member.size)
            self.keys += found
            entries = np.array([[number, *self.entry(file, key, parts, names)]
                                for key, parts in found.items()], np.int64).reshape(-1, 7)
            for label, name in names.items():
                if (known := self.names.setdefault(label, name)) != name:
                    raise ValueError(f"it calls class {label} {name}, another tar file {known}: "
                                     "these are pairs of two sets, import them apart")
            return entries

    def entry(
        self, file: Any, key: str, parts: dict[str, Part], names: dict[int, str]
    ) -> list[int]:
        """One pair of what a tar file has under its name; a class that is new gets into `names`."""
        samples = [ending for ending in SAMPLES if ending in parts]
        if len(samples) != 1:
            raise ValueError(f"{key} has {' and '.join(samples) or 'neither'} of {key}.png and "
                             f"{key}.npy, and needs one")
        if "noise.npy" not in parts:
            raise ValueError(f"{key} has no {key}.noise.npy; {NO_NOISE}")
        label = -1
        if "cls" in parts:
            label = int(content(file, parts["cls"], MAX_TEXT))
            if label not in names and "json" in parts:
                known = json.loads(content(file, parts["json"], MAX_TEXT)).get("label_name")
                names |= {} if known is None else {label: str(known)}
        return [samples[0] == "png", *parts[samples[0]], *parts["noise.npy"], label]

    def classes(self, where: str) -> tuple[NDArray[np.int64], list[str]]:
        """All labels (n,), and the names of the classes."""
        labels = self.entries[:, -1]
        if (labels == -1).all():
            return labels, []
        names = [self.names.get(label, str(label))
                 for label in range(min(int(labels.max()) + 1, 2**16))]
        check_names(names, where)
        return check_labels(labels, self.count, len(names), where), names

    def pair(self, row: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Noise and sample of a pair."""
        number, image, start, size, noise_start, noise_size, _ = self.entries[row].tolist()
        where = self.where(row)
        with damage(where), self.tars[number].open("rb") as file:
            noise = parse_npy(content(file, Part(noise_start, noise_size), MAX_FILE))
            require_floats(noise.dtype, where)
            packed = content(file, Part(start, size), MAX_FILE)
            if not image:
                sample = parse_npy(packed)
                if sample.dtype != np.uint8 and sample.dtype.kind != "f":
                    raise ValueError(f"a sample of type {sample.dtype}, expected uint8 or floats")
                return noise, sample
            pixels = np.asarray(decode(packed, where, ("PNG",)))
            return noise, pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

    def read(self, rows: NDArray[np.int64]) -> RawPairs:
        noise, samples = [], []
        for row in rows:
            one_noise, sample = self.pair(row)
            if (sample.shape, sample.dtype) != (self.shape, self.dtype):
                raise DataError(f"{self.where(row)} has shape {sample.shape} and type "
                                f"{sample.dtype}, the first pair {self.shape} and {self.dtype}: "
                                "one store holds pairs of one kind")
            noise.append(oriented(one_noise, self.shape, self.where(row)))
            samples.append(sample)
        return RawPairs(np.stack(noise), np.stack(samples), self.labels[rows])

    def where(self, row: int) -> str:
        return shown(f"{self.tars[self.entries[row, 0]]}: {self.keys[row]}")


def split_name(name: str) -> tuple[str, str]:
    """The key of a member, with the folder, and the rest after the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    key, _, ending = file.partition(".")
    return f"{folder}{slash}{key}", ending


def content(file: Any, part: Part, limit: int) -> bytes:
    """Raises: ValueError: it is larger than `limit`."""
    if part.size > limit:
        raise ValueError(f"a member has {part.size} bytes, at most {limit} are allowed")
    file.seek(part.start)
    read: bytes = file.read(part.size)
    return read
