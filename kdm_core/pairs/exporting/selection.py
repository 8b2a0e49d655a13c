"""Which pairs of a store are exported."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdm_core.errors import DataError
from kdm_core.pairs.spec import SPLITS, Split
from kdm_core.pairs.store import Block, PairStore
from kdm_core.serialization import fingerprint


class Selection(NamedTuple):
    """Some pairs of a store.

    Attributes:
        store: the store.
        rows: (n,) int64, ascending.
    """

    store: PairStore
    rows: NDArray[np.int64]

    @property
    def mark(self) -> str:
        """The same for the same pairs of equal stores."""
        return fingerprint({"pairs": self.store.spec.fingerprint, "rows": self.rows.tolist()})

    def pieces(self) -> Iterator[NDArray[np.int64]]:
        """The rows, shard by shard."""
        shards = self.rows // self.store.spec.shard
        yield from np.split(self.rows, np.flatnonzero(np.diff(shards)) + 1)

    def blocks(self) -> Iterator[Block]:
        """The pairs, shard by shard, without trajectories."""
        for rows in self.pieces():
            found = self.store.read(range(int(rows[0]), int(rows[-1]) + 1), states=False)
            chosen = rows - rows[0]
            yield Block(found.noise[chosen], found.sample[chosen], found.label[chosen],
                        found.index[chosen])

    def values(self, name: str) -> Iterator[NDArray[Any]]:
        """The values of one array, shard by shard."""
        for rows in self.pieces():
            if name == "noise" and self.store.spec.noise == "seeded":
                index = self.store.read_arrays(range(int(rows[0]), int(rows[-1]) + 1), [])["index"]
                yield self.store.draw_noise(index[rows - rows[0]])
                continue
            found = self.store.read_arrays(range(int(rows[0]), int(rows[-1]) + 1), [name])
            yield found[name][rows - rows[0]]


def select(store: PairStore, splits: Sequence[Split] = SPLITS, kept: bool = False) -> Selection:
    """The pairs of some splits, in the store's order.

    Args:
        store: the store.
        splits: the splits.
        kept: leave out what the store's mask does; it has no say over test pairs.

    Raises:
        DataError: there are no such pairs, or the store has no mask.
    """
    if kept and store.mask is None:
        raise DataError(f"{store.location} has no mask of pairs: leave it out", field="kept")
    ranges = [store.kept_rows(split) if kept else np.array(store.spec.split_range(split), np.int64)
              for split in SPLITS if split in splits]
    rows = np.concatenate(ranges)
    if not len(rows):
        raise DataError(f"{store.location} has no pairs of {', '.join(splits)}")
    return Selection(store, rows)
