"""No data: the samples of the pairs stand in their place."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from kdm_core.config import Config
from kdm_core.datasets.base import NO_DATA, Dataset, DatasetInfo
from kdm_core.errors import adapted
from kdm_core.pairs.spec import Split
from kdm_core.pairs.store import PairStore
from kdm_core.values import to_uint8

MOST = 50_000
"""Samples of a split that are taken: as many as CIFAR-10 has, which suffice for a classifier."""


class NoDataConfig(Config):
    """No real samples are at hand.

    The teacher's own samples take their place. Figures then say how far a student is from its
    teacher, and nothing says how far either is from the data.
    """

    source: Literal["none"]


def samples_as_data(location: str) -> Dataset:
    """Samples of a store's training pairs, and as held-out ones those of its validation pairs.

    The test pairs' are left for students to be measured on: what a student makes of their noise is
    then compared with samples of other noise, and not with its own targets.

    Raises:
        DataError: there is no such store, or pairs are missing or damaged.
    """
    store = PairStore.open(location)
    samples = store.spec.samples
    train, held_out = (read(store, split) for split in ("train", "validation"))
    info = DatasetInfo(source=NO_DATA, samples=samples, class_names=samples.label_names,
                       train=len(train[0]), test=len(held_out[0]))
    return Dataset(*train, *held_out, info)


def read(store: PairStore, split: Split) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
    """Samples as data sets have them, images as uint8, and labels, -1 where there are none."""
    rows = store.spec.split_range(split)
    if len(rows) > MOST:
        adapted(f"of the samples of {len(rows):,} {split} pairs the first {MOST:,} stand in for "
                "data")
    found = store.read_arrays(rows[:MOST], ["sample", "label"])
    made = found["sample"]
    if store.spec.samples.kind == "image" and made.dtype != np.uint8:
        made = to_uint8(torch.from_numpy(made)).numpy()
    return made, found["label"]
