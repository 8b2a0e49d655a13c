"""Which pairs a batch holds: the same ones whoever reads them.

Items are the pairs of a split that students read, 0, 1, 2, … in the order of the store's rows.
Without a window an epoch is one permutation of all items. With a window it is a block shuffle: the
files are permuted, as many as fit are taken into a window, and its items are permuted.

How good that is: two items of one file meet in a batch of B of a window of W with probability
(B − 1) / (W − 1) an epoch, and not with that of any two of N, (B − 1) / (N − 1). Pairs of a sampled
store are independent draws: what is in a file together is no more alike than what is not, and
nothing is lost but some variety of company. Where neighbours are alike (a subset sorted by label,
say), a batch is as even as w random files are, those of a window: choose one of ten or more.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from kdm_core.errors import KDMError
from kdm_core.pairs.reading.whole import split_rows
from kdm_core.pairs.spec import Split
from kdm_core.pairs.store import PairStore
from kdm_core.training.batches import BatchOrder


class BlockOrder(BatchOrder):
    """A shuffle for which a window of items is enough in memory at a time."""

    def __init__(
        self, sizes: NDArray[np.int64], window: int, batch: int, seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """Items in files of `sizes`, whole ones of which make up windows of at most `window`.

        Raises:
            KDMError: a window need not hold a batch.
        """
        super().__init__(int(sizes.sum()), batch, seed, device)
        self.edges, self.window = np.concatenate([[0], np.cumsum(sizes)]), window
        # All windows but an epoch's last then hold a batch, which thus lies in two of them at most.
        least = self.batch + int(sizes.max()) - 1
        if window < least:
            raise KDMError(f"shuffle_buffer: {window} pairs do not surely hold a batch "
                           f"({self.batch}) besides a part of a file ({sizes.max()}); use at least "
                           f"{least}, or null to mix all pairs in memory")

    def windows(self, epoch: int) -> list[NDArray[np.int64]]:
        """Whole files each; all but the last are full but for less than a file."""
        generator = self.generator(epoch)
        filled: list[list[NDArray[np.int64]]] = []
        room = 0
        for file in generator.permutation(len(self.edges) - 1):
            items = np.arange(self.edges[file], self.edges[file + 1])
            if room < len(items):
                filled.append([])
                room = self.window
            filled[-1].append(items)
            room -= len(items)
        return [generator.permutation(np.concatenate(files)) for files in filled]


def pair_order(
    store: PairStore, split: Split, batch: int, seed: int, window: int | None = None,
    device: torch.device | str = "cpu",
) -> BatchOrder:
    """The order in which the pairs of a split are read.

    Args:
        window: pairs that are mixed at a time; None, or as many as there are, mixes all.

    Raises:
        DataError: the split has no pairs.
        KDMError: the window is smaller than a batch and a file together.
    """
    rows = split_rows(store, split)
    if window is None or window >= len(rows):
        return BatchOrder(len(rows), batch, seed, device)
    sizes = np.unique(rows // store.spec.shard, return_counts=True)[1]
    return BlockOrder(sizes, window, batch, seed, device)
