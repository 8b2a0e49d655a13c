"""Which reader suits: all pairs in memory, or a window of them at a time."""

from collections.abc import Callable

import torch

from kdm_core.pairs.reading.batches import PairReader
from kdm_core.pairs.reading.resident import ResidentReader
from kdm_core.pairs.reading.streaming import StreamingReader
from kdm_core.pairs.spec import Split
from kdm_core.pairs.store import PairStore


def open_reader(
    store: PairStore, split: Split, batch: int, seed: int, device: torch.device,
    window: int | None = None, states: bool = False,
    on_pairs: Callable[[int], None] = lambda pairs: None,
) -> PairReader:
    """A reader of the pairs of a split that its mask keeps; use it as a context manager.

    Args:
        batch: pairs of a global batch, at most as many as there are.
        seed: decides the order.
        device: where batches are made.
        window: pairs that are mixed at a time, and twice as many of which are held in the host's
            memory; None, or as many as there are, mixes all, which then lie on the device.
        states: also read the trajectory, if the store has one.
        on_pairs: told the number of pairs that were read before the first batch, file by file.

    Raises:
        DataError: the split has no pairs, or one is missing or damaged.
        KDMError: the window is smaller than a batch and a file together.
    """
    if window is None or window >= len(store.kept_rows(split)):
        return ResidentReader.open(store, split, batch, seed, device, None, states, on_pairs)
    return StreamingReader(store, split, batch, seed, device, window, states)
