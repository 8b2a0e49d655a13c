"""Pairs that all lie on the device: nothing ever waits for a disk."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from kdm_core.pairs.reading.batches import Buffers, PairReader, convert
from kdm_core.pairs.reading.order import pair_order
from kdm_core.pairs.reading.whole import Pairs, read_rows, split_rows, state_positions
from kdm_core.pairs.spec import Split
from kdm_core.pairs.store import PairStore
from kdm_core.training.batches import BatchOrder
from kdm_core.training.distributed import own_rows

THREADS = 2


class ResidentReader(PairReader):
    """Batches of pairs in memory, which are as they are stored: a million of CIFAR-10 take 9.2 GB
    with noise in float16 and samples in uint8, and 25 GB in float32.

    Attributes:
        pairs: all of them, one an item of the order.
    """

    def __init__(self, pairs: Pairs, order: BatchOrder) -> None:
        super().__init__(order, pairs.noise.device)
        self.pairs = pairs
        self._buffers = Buffers(pairs, order, self.device)
        size = self._buffers.size
        self._gathered = [values.new_empty(size, *values.shape[1:]) for values in pairs.values]

    @classmethod
    def of(cls, pairs: Pairs, batch: int, seed: int) -> "ResidentReader":
        """A reader of pairs that are mixed as a whole."""
        return cls(pairs, BatchOrder(len(pairs.noise), batch, seed, pairs.noise.device))

    @classmethod
    def open(
        cls, store: PairStore, split: Split, batch: int, seed: int, device: torch.device,
        window: int | None = None, states: bool = False,
        on_pairs: Callable[[int], None] = lambda pairs: None,
    ) -> "ResidentReader":
        """A reader of a store's split.

        Args:
            window: pairs that are mixed at a time; None for all.
            states: also read the trajectory, if the store has one.
            on_pairs: told the number of pairs that each file adds.

        Raises:
            DataError: the split has no pairs, or one is missing or damaged.
            KDMError: the window is smaller than a batch and a file together.
        """
        order = pair_order(store, split, batch, seed, window, device)
        return cls(load(store, split, device, states, on_pairs), order)

    def __call__(self, step: int) -> Pairs:
        rows = own_rows(self.order(step))
        batch = self._buffers.next()
        for rest, gathered, values in zip(self.pairs.values, self._gathered, batch, strict=True):
            if rest.dtype == values.dtype:
                torch.index_select(rest, 0, rows, out=values)
            else:
                convert(torch.index_select(rest, 0, rows, out=gathered), values)
        return Pairs(*batch)._replace(positions=self.pairs.positions)


def load(
    store: PairStore, split: Split, device: torch.device, states: bool = False,
    on_pairs: Callable[[int], None] = lambda pairs: None,
) -> Pairs:
    """All pairs of a split that its mask keeps, at rest on a device, read file by file.

    Raises:
        DataError: there are none, or one is missing or damaged.
    """
    rows = split_rows(store, split)
    first = read_rows(store, rows[:1], states)
    whole = [values.new_empty(len(rows), *values.shape[1:], device=device)
             for values in first.values]
    cuts = np.flatnonzero(np.diff(rows // store.spec.shard)) + 1

    def fill(start: int, stop: int) -> int:
        for values, read in zip(whole, read_rows(store, rows[start:stop], states).values,
                                strict=True):
            values[start:stop].copy_(read)
        return stop - start

    with ThreadPoolExecutor(THREADS) as threads:
        for count in threads.map(fill, [0, *cuts], [*cuts, len(rows)]):
            on_pairs(count)
    return Pairs(*whole)._replace(
        positions=state_positions(store, device) if len(whole) > len(Pairs._fields[:3]) else None)
