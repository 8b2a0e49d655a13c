"""Pairs by their number: for looking at single ones, and for data loaders of others."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from kdm_core.pairs.reading.whole import Pairs, split_rows, state_positions
from kdm_core.pairs.spec import Split
from kdm_core.pairs.store import PairStore
from kdm_core.values import as_float

CACHE_BYTES = 2**30

Chunk = dict[str, NDArray[np.generic]]


class PairDataset(Dataset[tuple[Tensor, ...]]):
    """The pairs of a split that its mask keeps, as a map-style data set of torch.

    `dataset[3]` is a tuple: noise and sample (*shape) float32, label () int64 and, where they are
    read, states (k, *shape) float16. `dataset[[3, 1]]`, or with a slice or an array of numbers,
    is a batch of `Pairs`, which is several times faster than as many single ones.

    A store is compressed by chunks. Those last used are kept, decoded, up to `cache_bytes`: while
    the split fits, any order is fast; beyond that each pair costs a chunk's decoding, and a reader
    with a window is the better choice. Each worker of a torch DataLoader has a cache of its own.
    Seeded noise is drawn for the pairs asked for, and not kept.
    """

    def __init__(
        self, store: PairStore, split: Split, states: bool = False, cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Args:
            states: also read the trajectory, if the store has one.

        Raises:
            DataError: the split has no pairs.
        """
        self.store, self.rows, self.cache_bytes = store, split_rows(store, split), cache_bytes
        self._names = [name for name in store.arrays if states or name != "trajectory"]
        self._positions = state_positions(store, torch.device("cpu")) if states else None
        self._chunks: OrderedDict[int, Chunk] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, items: int) -> tuple[Tensor, ...]: ...

    @overload
    def __getitem__(self, items: slice | Sequence[int] | NDArray[np.int64] | Tensor) -> Pairs: ...

    def __getitem__(
        self, items: int | slice | Sequence[int] | NDArray[np.int64] | Tensor
    ) -> tuple[Tensor, ...] | Pairs:
        """Pairs by their numbers, from 0, in the split; negative ones count from its end.

        Raises:
            IndexError: there is no pair of a number.
            DataError: a pair is missing or damaged.
        """
        if isinstance(items, int):
            return self.__getitems__([items])[0]
        return self._read(self.rows[items if isinstance(items, slice) else np.asarray(items)])

    def __getitems__(self, items: list[int]) -> list[tuple[Tensor, ...]]:
        """Several single pairs, as torch's DataLoader asks for them."""
        return list(zip(*self[items].values, strict=True))

    def _read(self, rows: NDArray[np.int64]) -> Pairs:
        """Pairs at rows of the store (n,), in any order."""
        spec = self.store.spec
        found: Chunk = {name: np.empty((len(rows), *array.shape[1:]), array.dtype)
                        for name, array in self.store.arrays.items() if name in self._names}
        chunks = rows // spec.chunk
        for chunk in np.unique(chunks).tolist():
            places = np.flatnonzero(chunks == chunk)
            for name, values in self._chunk(chunk).items():
                found[name][places] = values[rows[places] - chunk * spec.chunk]
        noise = (self.store.draw_noise(found["index"].astype(np.int64))
                 if spec.noise == "seeded" else found["noise"])
        others = [torch.from_numpy(found[name]) for name in ("label", "trajectory")
                  if name in found]
        return Pairs(as_float(noise), as_float(found["sample"]), *others)._replace(
            positions=self._positions)

    def _chunk(self, chunk: int) -> Chunk:
        """A decoded chunk, which is now the one last used."""
        if chunk not in self._chunks:
            spec = self.store.spec
            rows = range(chunk * spec.chunk, min((chunk + 1) * spec.chunk, spec.count))
            read = self.store.read_arrays(rows, self._names)
            self._chunks[chunk] = read
            self._bytes += size(read)
            while self._bytes > self.cache_bytes and len(self._chunks) > 1:
                self._bytes -= size(self._chunks.popitem(last=False)[1])
        self._chunks.move_to_end(chunk)
        return self._chunks[chunk]


def size(chunk: Chunk) -> int:
    """Bytes of a chunk's arrays."""
    return sum(values.nbytes for values in chunk.values())
