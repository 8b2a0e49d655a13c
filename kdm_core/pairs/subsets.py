"""Taking a part of a store's pairs into a store of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kdm_core.config import Config
from kdm_core.errors import DataError, at_most
from kdm_core.pairs.integrity.verifying import copy_whole
from kdm_core.pairs.keep import KeepMask
from kdm_core.pairs.location import failures
from kdm_core.pairs.opening import open_or_create
from kdm_core.pairs.sampling import join_blocks
from kdm_core.pairs.spec import SPLITS, Split, StoreSpec, Subset
from kdm_core.pairs.store import Block, PairStore

Rows = dict[Split, NDArray[np.int64]]


class Selection(Config):
    """Which pairs to take: those that fit all that is given.

    Attributes:
        splits: whose pairs.
        indices: from the first to before the second; of a subset those in the store that it was
            taken from.
        labels: numbers of classes; `kdm_core.labels.parse_classes` finds those of names.
        kept: only what the store's mask keeps; test pairs are not masked.
        train: at most so many training pairs, the first ones.
    """

    splits: list[Split] = list(SPLITS)
    indices: tuple[int, int] | None = None
    labels: list[int] = []
    kept: bool = False
    train: int | None = Field(None, ge=0)

    def in_words(self) -> str:
        """What was asked for, as the subset's attributes keep it."""
        rules = [f"splits {', '.join(self.splits)}"] if set(self.splits) != set(SPLITS) else []
        if self.indices is not None:
            rules.append(f"indices {self.indices[0]}:{self.indices[1]}")
        if self.labels:
            rules.append(f"labels {', '.join(map(str, self.labels))}")
        rules += ["kept by the mask"] if self.kept else []
        if self.train is not None:
            rules.append(f"the first {self.train} train pairs")
        return "; ".join(rules) or "all"


def select(store: PairStore, selection: Selection) -> Rows:
    """The rows of each split that a selection takes, ascending.

    Raises:
        DataError: it takes none, names a label or an index that the store has not, or asks for a
            mask where there is none; or the store is damaged.
    """
    spec = store.spec
    everything = store.read_arrays(range(spec.count), ["label"])
    index, label = everything["index"], everything["label"]
    if unknown := [number for number in selection.labels
                   if not 0 <= number < spec.samples.num_classes]:
        raise DataError(f"{store.location} has no label {unknown[0]}; it has "
                        f"{spec.samples.num_classes}, numbered from 0")
    if selection.kept and store.mask is None:
        raise DataError(f"{store.location} has no mask of its own: name one", field="mask")
    start, stop = selection.indices or (0, int(index.max(initial=-1)) + 1)
    if not 0 <= start < stop <= index.max(initial=-1) + 1:
        raise DataError(f"{store.location} has the indices {index.min(initial=0)} to "
                        f"{index.max(initial=-1) + 1}, and not {start}:{stop}")
    fits = (index >= start) & (index < stop)
    if selection.labels:
        fits &= np.isin(label, selection.labels)
    found: Rows = {}
    for split in SPLITS:
        own = spec.split_range(split)
        rows = store.kept_rows(split) if selection.kept else np.arange(own.start, own.stop)
        found[split] = rows[fits[rows]] if split in selection.splits else rows[:0]
    if selection.train is not None:
        found["train"] = found["train"][: at_most("train", selection.train, len(found["train"]),
                                                  "training pairs that fit")]
    if not any(len(rows) for rows in found.values()):
        raise DataError(f"{store.location}: no pair fits ({selection.in_words()})")
    return found


def subset(
    store: PairStore, target: Path | str, rows: Rows, rule: str,
    on_pairs: Callable[[int], None] = lambda pairs: None,
) -> PairStore:
    """Take some pairs into a store of their own; one that was interrupted goes on.

    Without the last of the training pairs alone it is an ordinary store, as if fewer had been
    sampled. Otherwise it keeps the indices that the pairs have in the store that they were
    sampled or imported into, and `spec.subset` says which that is.

    Args:
        target: a new store, or what an interrupted call has left.
        rows: of each split, ascending.
        rule: how they were chosen, in words.
        on_pairs: is told the pairs of each shard.

    Raises:
        MismatchError: the target holds other pairs.
        DataError: the store is damaged, or the target cannot be written.
        KDMError: another process writes to the target.
    """
    spec = part_of(store.spec, rows, rule)
    chosen = np.concatenate([rows[split] for split in SPLITS])
    part = open_or_create(target, spec, store.provenance)
    missing = set(part.missing_shards())
    for shard in range(spec.num_shards):
        places = spec.shard_range(shard)
        wanted = chosen[places.start : places.stop]
        if shard in missing:
            if np.array_equal(wanted, np.arange(shard * spec.shard, (shard + 1) * spec.shard)):
                copy_whole(store, part, shard)
            else:
                part.write_shard(shard, gather(store, wanted))
        on_pairs(len(places))
    if store.mask is not None:
        mask = KeepMask(spec.fingerprint, store.mask.names, store.mask.reasons[chosen])
        with failures(target):
            mask.write(part.group)
    return PairStore.open(target, writable=True)


def part_of(spec: StoreSpec, rows: Rows, rule: str) -> StoreSpec:
    """What a store of some rows of another one holds."""
    splits: dict[Split, int] = {split: len(rows[split]) for split in SPLITS}
    first = np.arange(splits["train"]) + spec.split_range("train").start
    others = all(len(rows[split]) == len(spec.split_range(split)) for split in SPLITS[:-1])
    whole = splits["train"] == len(spec.split_range("train"))
    if others and np.array_equal(rows["train"], first) and (whole or spec.subset is None):
        return spec.model_copy(update={"splits": splits})
    origin, before = spec.fingerprint, ""
    if spec.subset is not None:
        origin, before = spec.subset.pairs, f"{spec.subset.rule}; of these: "
    return spec.model_copy(update={
        "splits": splits, "subset": Subset(pairs=origin, rule=before + rule)})


def gather(store: PairStore, rows: NDArray[np.int64]) -> Block:
    """The pairs of ascending rows, in order; every shard is read once.

    Raises:
        DataError: one is missing or damaged.
    """
    shards = rows // store.spec.shard
    blocks = []
    for shard in np.unique(shards):
        here = rows[shards == shard]
        block = store.read(range(int(here[0]), int(here[-1]) + 1))
        taken: list[Any] = [None if values is None else values[here - here[0]]
                            for values in block]
        blocks.append(Block(*taken))
    return join_blocks(blocks, len(rows))
