"""Pairs of a store that is larger than memory: read in the background while others are used."""

import weakref
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kdm_core.pairs.reading.batches import Buffers, PairReader, convert
from kdm_core.pairs.reading.order import pair_order
from kdm_core.pairs.reading.whole import Pairs, read_rows, split_rows, state_positions
from kdm_core.pairs.spec import Split
from kdm_core.pairs.store import PairStore
from kdm_core.training.batches import BatchOrder
from kdm_core.training.distributed import own_rows

THREADS = 2

Key = tuple[int, int]
"""Epoch and number of a window in it."""


class Part(NamedTuple):
    """What this process uses of a window.

    Attributes:
        rows: (n,) of the store, in the order of their use.
        stop: pairs of the epoch that it has used when it has used these.
    """

    rows: NDArray[np.int64]
    stop: int

    @property
    def start(self) -> int:
        return self.stop - len(self.rows)


class Slot:
    """Memory of one window, at rest; pinned where a GPU copies from it.

    Attributes:
        pairs: in the order of their use.
        futures: what fills it.
    """

    def __init__(self, first: Pairs, size: int, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.pairs = Pairs(*(values.new_empty(size, *values.shape[1:], pin_memory=self.cuda)
                             for values in first.values))
        self.futures: list[Future[None]] = []
        self._used: torch.cuda.Event | None = None

    def release(self) -> None:
        """Stop what fills it, and mark what the GPU still has to copy from it."""
        for future in self.futures:
            future.cancel()
        wait(self.futures)
        self.futures = []
        if self.cuda:
            self._used = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._used.record()

    def fill(
        self, store: PairStore, rows: NDArray[np.int64], places: NDArray[np.int64], states: bool
    ) -> None:
        """Put the pairs of ascending rows, all of one file, where they will be used."""
        read = read_rows(store, rows, states)
        if self._used is not None:
            self._used.synchronize()
        for values, found in zip(self.pairs.values, read.values, strict=True):
            values.numpy()[places] = found.numpy()


class StreamingReader(PairReader):
    """Batches of pairs of which two windows are in memory: one in use, the next being read.

    Threads read the files of a window and put each pair at the place where it will be used, so
    that a batch is a slice. An error of theirs is raised where the pairs are asked for. They end
    with the reader (`close`, or its use as a context manager).

    Any step can be asked for; only one after the other are windows read ahead.
    """

    def __init__(
        self, store: PairStore, split: Split, batch: int, seed: int, device: torch.device,
        window: int, states: bool = False,
    ) -> None:
        """A reader of a store's split.

        Args:
            window: pairs that are mixed, and read, at a time.
            states: also read the trajectory, if the store has one.

        Raises:
            DataError: the split has no pairs, or the first one is missing or damaged.
            KDMError: the window is smaller than a batch and a file together.
        """
        super().__init__(pair_order(store, split, batch, seed, window), device)
        self.store, self.states, rows = store, states, split_rows(store, split)
        first = read_rows(store, rows[:1], states)
        self._positions = None if first.trajectory is None else state_positions(store, device)
        self._buffers = Buffers(first, self.order, device)
        self._free = [Slot(first, min(window, len(rows)), device) for _ in range(2)]
        self._held: dict[Key, Slot] = {}
        self._plan = lru_cache(maxsize=2)(partial(plan, self.order, rows))
        self._threads = ThreadPoolExecutor(THREADS, "pairs")
        # Also where nobody closes it: threads would keep a program alive.
        self._end = weakref.finalize(self, self._threads.shutdown, cancel_futures=True)

    def close(self) -> None:
        self._end()

    def prepare(self, step: int) -> None:
        self._wait(self._keys(step))

    def __call__(self, step: int) -> Pairs:
        keys, batch = self._keys(step), self._buffers.next()
        self._wait(keys)
        start = step % self.per_epoch * self._buffers.size
        stop = start + self._buffers.size
        for key in keys:
            part = self._part(key)
            first, last = max(start, part.start), min(stop, part.stop)
            for rest, values in zip(self._held[key].pairs.values, batch, strict=True):
                read = rest[first - part.start : last - part.start]
                # Converted on the device: that is less to copy, and the copy does not wait.
                convert(read.to(self.device, non_blocking=self.device.type == "cuda"),
                        values[first - start : last - start])
        return Pairs(*batch)._replace(positions=self._positions)

    def _keys(self, step: int) -> list[Key]:
        """The one or two windows in which the pairs of a step are."""
        epoch, position = divmod(step, self.per_epoch)
        start = position * self._buffers.size
        stop = start + self._buffers.size
        return [(epoch, number) for number, part in enumerate(self._plan(epoch))
                if part.start < stop and part.stop > start]

    def _part(self, key: Key) -> Part:
        return self._plan(key[0])[key[1]]

    def _after(self, key: Key) -> Key:
        epoch, number = key
        return (epoch, number + 1) if number + 1 < len(self._plan(epoch)) else (epoch + 1, 0)

    def _wait(self, keys: list[Key]) -> None:
        """Have windows in memory, and the next one on its way if there is room for it."""
        wanted = [*keys, self._after(keys[-1])][:2]
        for key in [key for key in self._held if key not in wanted]:
            slot = self._held.pop(key)
            slot.release()
            self._free.append(slot)
        for key in wanted:
            if key not in self._held:
                self._held[key] = self._free.pop()
                self._start(self._held[key], self._part(key).rows)
        for key in keys:
            for future in self._held[key].futures:
                future.result()

    def _start(self, slot: Slot, rows: NDArray[np.int64]) -> None:
        """Have the threads read `rows`, a file each at a time."""
        places = np.argsort(rows)
        cuts = np.flatnonzero(np.diff(rows[places] // self.store.spec.shard)) + 1
        slot.futures = [self._threads.submit(slot.fill, self.store, rows[part], part, self.states)
                        for part in np.split(places, cuts)]


def plan(order: BatchOrder, rows: NDArray[np.int64], epoch: int) -> list[Part]:
    """What this process uses of the windows of an epoch; those it uses nothing of are left out.

    Args:
        rows: of the store, one an item of the order.
    """
    windows = order.windows(epoch)
    own = own_rows(torch.arange(order.batch)).numpy()
    used = (np.arange(order.per_epoch)[:, None] * order.batch + own).ravel()
    stops = np.searchsorted(used, np.cumsum([len(window) for window in windows])).tolist()
    sequence = rows[np.concatenate(windows)[used]]
    parts = [Part(sequence[start:stop], stop)
             for start, stop in zip([0, *stops[:-1]], stops, strict=True)]
    return [part for part in parts if len(part.rows)]
