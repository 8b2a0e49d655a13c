"""A folder of PNG files, and the noise of each beside it or of all in one file.

    000000.png, 000000.npy (or 000000.noise.npy), …    noise (C, H, W) or (H, W, C), floats
    noise.npy                                          or that of all, in natural order of the files

Labels stand in dataset.json ({"labels": [[name, class], …]}, as EDM's tools write it) or
labels.json ({"labels": {name: {"label": class, "name": its name}}}); without these the folders in
which the images lie, if there are any, are their classes: class k is folder k where all are whole
numbers.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdm_core.datasets.base import check_labels, check_names, numbered_classes, unlabelled
from kdm_core.datasets.images import MAX_FILE, decode
from kdm_core.datasets.listing import in_class_order, pass_over
from kdm_core.datasets.npy import ArrayFile, damage, parse_npy
from kdm_core.datasets.reading import read_limited
from kdm_core.errors import DataError, adapted, shown
from kdm_core.pairs.importing.arrays import open_noise
from kdm_core.pairs.importing.listing import of_kind, require_one_order, walk
from kdm_core.pairs.importing.source import (
    NO_NOISE,
    PairSource,
    RawPairs,
    oriented,
    require_floats,
)

NOISE = "noise.npy"
LISTS = ("dataset.json", "labels.json")
IN_A_LIST = "; or write the class of each image into dataset.json, if a teacher knows more classes"
MAX_LIST = 256 * 2**20
THREADS = 8


class PngFolder(PairSource):
    """Pairs in a folder of PNG files."""

    kind = "image"
    labels: NDArray[np.int64]

    def __init__(self, folder: Path, noise: Path | None) -> None:
        """
        Raises:
            DataError: there are none, there is no noise, or labels and images do not fit.
        """
        self.folder = folder
        names = set(walk(folder))
        self.files = of_kind(names, ".png")
        if not self.files:
            raise DataError(f"{folder} holds no .png files")
        self.count = len(self.files)
        self.shape = self.image(self.files[0]).shape
        beside = self.find_beside(names)
        in_one = noise or (folder / NOISE if NOISE in names else None)
        if noise is None and in_one is not None and beside:
            raise DataError(f"{in_one} and {folder / next(iter(beside.values()))} both hold some: "
                            f"remove or rename one, or say {in_one}", field="noise")
        self.noise = None if in_one is None else self.join_by_position(in_one)
        self.beside = {} if self.noise is not None else self.require_all(beside)
        self.labels, self.label_names = self.find_labels()
        self.numbered = any((folder / name).exists() for name in LISTS)
        self.layout = "a folder of PNG files, noise " + (
            "each in a file of the same name" if self.noise is None else
            "in one file, joined by position in natural order of the names")
        noises = {*self.beside.values(), os.path.relpath(in_one or folder, folder)}
        pass_over(sorted(names - noises.union(self.files, LISTS)), self.count, "images",
                  str(folder))

    def find_beside(self, names: set[str]) -> dict[str, str]:
        """The files with noise of the same name as an image, by the image's.

        Raises:
            DataError: there are two of one, or one of two.
        """
        found: dict[str, str] = {}
        owners: dict[str, str] = {}
        for image in self.files:
            stem = image[:-len(".png")]
            there = [name for name in (f"{stem}.npy", f"{stem}.noise.npy") if name in names]
            if len(there) > 1:
                raise DataError(f"{self.folder}: {there[0]} and {there[1]} are both noise of "
                                f"{image}: remove one")
            if there:
                if (other := owners.setdefault(there[0], image)) != image:
                    raise DataError(f"{self.folder}: {there[0]} may be the noise of {other} and of "
                                    f"{image}: rename one of them, and its noise")
                found[image] = there[0]
        return found

    def require_all(self, beside: dict[str, str]) -> dict[str, str]:
        """The same files.

        Raises:
            DataError: an image has none.
        """
        without = next((image for image in self.files if image not in beside), None)
        if without is None:
            return beside
        image = self.folder / without
        raise DataError(f"{image} has none: put it beside it as {image.stem}.npy, or that of all "
                        f"images into {NOISE} or a file that this names; {NO_NOISE}", field="noise")

    def join_by_position(self, path: Path) -> ArrayFile:
        """The noise of all pairs in one file.

        Raises:
            DataError: it does not fit, or the order of the images is not sure.
        """
        noise = open_noise(path)
        require_floats(noise.dtype, str(path))
        if noise.shape[:1] != (self.count,):
            raise DataError(f"{path}: noise of shape {noise.shape} for {self.count} images in "
                            f"{self.folder}: give one for each")
        oriented(np.empty((0, *noise.shape[1:])), self.shape, str(path))
        require_one_order(self.files, str(path))
        plain = sorted(self.files)
        other = next((f"; {one} before {two}, unlike in the order of letters"
                      for one, two in zip(self.files, plain, strict=True) if one != two), "")
        adapted(f"{path} and the images in {self.folder} are joined by position, in natural order "
                f"of the names: the first noise is that of {shown(self.files[0])}, the last that "
                f"of {shown(self.files[-1])}{shown(other)}")
        return noise

    def find_labels(self) -> tuple[NDArray[np.int64], list[str]]:
        """All labels (n,), and the names of the classes."""
        lists = [self.folder / name for name in LISTS if (self.folder / name).exists()]
        if len(lists) > 1:
            raise DataError(f"{lists[0]} and {lists[1]} both name the labels: remove one")
        folders = {name.rpartition("/")[0] for name in self.files}
        if lists:
            where = str(lists[0])
            labels, called = listed(lists[0], self.files)
            names = numbered_classes(labels, where) if (labels >= 0).any() else []
            names = name_classes(names, called, where)
        elif folders == {""}:
            return unlabelled(self.count), []
        else:
            classes = self.class_folders(folders)
            names, where = in_class_order(classes, str(self.folder), IN_A_LIST), str(self.folder)
            places = {classes[name]: place for place, name in enumerate(names)}
            labels = np.array([places[name.rpartition("/")[0]] for name in self.files], np.int64)
        check_names(names, where)
        return (check_labels(labels, self.count, len(names), where) if names else labels), names

    def class_folders(self, folders: set[str]) -> dict[str, str]:
        """The folders of images by the names of their classes, which may all lie in one folder.

        Raises:
            DataError: it is not sure which folders are the classes.
        """
        top = "" if "" in folders else os.path.commonpath(folders)
        top = os.path.dirname(top) if len(folders) == 1 else top
        classes = {os.path.relpath(name or ".", top or "."): name for name in folders}
        if "." in classes:
            raise DataError(f"{self.folder / top} has images beside folders of images: if these "
                            f"are the classes ({max(folders)}, …), move all images into them")
        if deeper := next((name for name in sorted(classes) if "/" in name), None):
            raise DataError(f"{self.folder / classes[deeper]} is a folder inside a class: move its "
                            "images up, or write the class of each image into dataset.json")
        if top:
            adapted(f"the folders in {self.folder / top} are taken for the classes, since "
                    f"{self.folder.name} holds no other images")
        return classes

    def image(self, name: str) -> NDArray[np.uint8]:
        """One image (C, H, W)."""
        path = self.folder / name
        pixels = np.asarray(decode(read_limited(path, MAX_FILE), shown(path), ("PNG",)))
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

    def read_one(self, name: str) -> tuple[NDArray[Any] | None, NDArray[np.uint8]]:
        image = self.image(name)
        if image.shape != self.shape:
            raise DataError(f"{self.folder / name} has shape {image.shape} (channels, height, "
                            f"width), {self.files[0]} has {self.shape}: make all images alike")
        if self.noise is not None:
            return None, image
        path = self.folder / self.beside[name]
        content = read_limited(path, MAX_FILE)
        with damage(path):
            noise = parse_npy(content)
        require_floats(noise.dtype, str(path))
        return oriented(noise.squeeze() if noise.ndim > 3 else noise, self.shape, str(path)), image

    def read(self, rows: NDArray[np.int64]) -> RawPairs:
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(self.read_one, [self.files[row] for row in rows]))
        images = np.stack([image for _, image in found])
        if self.noise is not None:
            noise = oriented(self.noise.read(rows), self.shape, "the noise")
        else:
            noise = np.stack([noise for noise, _ in found if noise is not None])
        return RawPairs(noise, images, self.labels[rows])

    def where(self, row: int) -> str:
        return shown(self.folder / self.files[row])


def name_classes(numbers: list[str], called: set[tuple[int, str]], where: str) -> list[str]:
    """The names of classes, where a list calls each by one of its own, else their numbers."""
    names = list(numbers)
    for label, name in called:
        names[label] = name
    if len({label for label, _ in called}) < len(called) or len(set(names)) < len(names):
        adapted(f"{where}: its names of classes are not used, since they do not tell them apart")
        return numbers
    return names


def listed(path: Path, files: list[str]) -> tuple[NDArray[np.int64], set[tuple[int, str]]]:
    """The labels of files as a list has them, -1 where it has null, and the names it gives them.

    Raises:
        DataError: the list is damaged, or does not have each file once.
    """
    with damage(path):
        entries: Any = json.loads(read_limited(path, MAX_LIST))["labels"]
        if entries is None:
            return unlabelled(len(files)), set()
        pairs = entries.items() if isinstance(entries, dict) else entries
        labels: dict[str, int] = {}
        called: set[tuple[int, str]] = set()
        for name, entry in pairs:
            if name in labels:
                raise ValueError(f"it has {str(name)[:200]} twice")
            labels[str(name)] = label = class_of(entry)
            if label >= 0 and isinstance(entry, dict) and entry.get("name") is not None:
                called.add((label, str(entry["name"])))
    if different := sorted(labels.keys() ^ set(files)):
        has = "has a label and is no image" if different[0] in labels else "has no label"
        raise DataError(f"{path}: {different[0][:200]} {has} ({len(labels)} labels, {len(files)} "
                        "images): make the list again")
    return np.array([labels[name] for name in files], np.int64), called


def class_of(entry: Any) -> int:
    """A class in a list of labels: a number, {"label": number}, or null."""
    number = entry["label"] if isinstance(entry, dict) else entry
    if number is None:
        return -1
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**31:
        raise ValueError(f"{str(number)[:100]} is no class")
    return number
