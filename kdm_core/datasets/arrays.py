"""Samples and labels in one .npz file, whether they are a data set's or those of pairs.

    images, samples, sample, arr_0    (n, H, W), (n, H, W, C) or (n, C, H, W), or points (n, D)
    labels, label, y, arr_1           integers (n,), from 0; may be absent
    label_names, names                strings, one for each class; may be absent
"""

from collections.abc import Sequence
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
from kdm_core.datasets.listing import some
from kdm_core.datasets.npy import NUMBERS, STRINGS, NpzMember, npz_members
from kdm_core.errors import DataError, adapted

SAMPLES = ("images", "samples", "sample", "arr_0")
LABELS = ("labels", "label", "y", "arr_1")
NAMES = ("label_names", "names")
MAX_LABELS = 2**32
NAMED = "name the arrays, as numpy.savez(file, images=…, labels=…) does"


class LabelledArrays:
    """The samples of a file, which stay there until they are read, and their labels.

    Attributes:
        path, members: the file, and all its arrays by name.
        key: name of the samples' array.
        samples: it, (n, …).
        labels: (n,) int64, -1 without classes.
        label_names: of the classes; empty if there are none.
        numbered: whether the classes have numbers for names, since the file has none.
    """

    def __init__(self, path: Path, others: Sequence[str] = ()) -> None:
        """
        Args:
            path: the file.
            others: arrays that the caller reads. Those that nobody does are told of.

        Raises:
            DataError: it is missing or damaged, or its arrays contradict each other.
        """
        self.path, self.members = path, npz_members(path)
        key = only(SAMPLES, self.members, path)
        if key is None:
            raise DataError(f"{path} has no array 'images', nor any of {', '.join(SAMPLES[1:])}, "
                            f"but {some(sorted(self.members)) or 'none'}: {NAMED}")
        self.key, self.samples = key, NpzMember(path, self.members[key])
        if not self.samples.shape:
            raise DataError(f"{path}: {key} is a single number: {NAMED}")
        self.count = self.samples.shape[0]
        self.labels, self.label_names, self.numbered = self.read_labels()
        used = {*SAMPLES, *LABELS, *NAMES, *others}
        if unused := sorted(name for name in self.members if name not in used):
            hint = "" if only(LABELS, self.members, path) else (
                f"; there are no labels, which are called {', '.join(LABELS)}")
            adapted(f"{path}: not read: {', '.join(unused)[:200]}{hint}")

    def read_labels(self) -> tuple[NDArray[np.int64], list[str], bool]:
        """All labels (n,), the names of the classes, and whether these are but numbers."""
        key, names = only(LABELS, self.members, self.path), self.read_names()
        if key is None:
            if names:
                raise DataError(f"{self.path} has names of classes but no labels: add the array "
                                "'labels'")
            return unlabelled(self.count), [], False
        where = str(self.path)
        file = NpzMember(self.path, self.members[key], NUMBERS + STRINGS)
        if len(file.shape) not in (1, 2) or file.shape[0] != self.count or file.nbytes > MAX_LABELS:
            raise DataError(f"{where}: {key} has shape {file.shape}, expected a label for each "
                            f"sample, shape ({self.count},): correct it, or {NAMED}")
        labels = file.whole()
        numbered = not names
        if numbered:
            names = numbered_classes(labels, where) if labels.dtype.kind in "iu" else []
        return check_labels(labels, self.count, len(names), where), names, numbered

    def read_names(self) -> list[str]:
        """The names of the classes, if there are any."""
        key = only(NAMES, self.members, self.path)
        if key is None:
            return []
        where = str(self.path)
        file = NpzMember(self.path, self.members[key], NUMBERS + STRINGS)
        if len(file.shape) != 1 or file.dtype.kind != "U" or file.shape[0] > MAX_CLASSES:
            raise DataError(f"{where}: label_names of type {file.dtype} and shape {file.shape}, "
                            f"expected a string for each class, {MAX_CLASSES} at most: save "
                            "names.astype(str)")
        names = [str(name) for name in file.whole()]
        check_names(names, where)
        return names


def only(aliases: Sequence[str], names: dict[str, Any], path: Path) -> str | None:
    """The one of `aliases` that is among `names`, if any.

    Raises:
        DataError: several are.
    """
    present = [name for name in aliases if name in names]
    if len(present) > 1:
        raise DataError(f"{path} has arrays {' and '.join(map(repr, present))}, which mean the "
                        f"same: keep one, or {NAMED}")
    return present[0] if present else None
