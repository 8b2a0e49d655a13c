"""Pairs in memory, and reading them from a store."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdm_core.errors import DataError
from kdm_core.pairs.spec import Split
from kdm_core.pairs.store import PairStore
from kdm_core.values import from_uint8


class Pairs(NamedTuple):
    """Pairs on one device: of a split, or of a batch.

    Attributes:
        noise, samples: (n, *shape) float32; at rest as they are stored, images perhaps as uint8.
        labels: (n,) int64.
        trajectory: (n, k, *shape) float16, states of unit variance between noise and sample,
            noisiest first; None where none were read.
        positions: (k,) float32, their positions from samples (0) to noise (1).
    """

    noise: Tensor
    samples: Tensor
    labels: Tensor
    trajectory: Tensor | None = None
    positions: Tensor | None = None

    @property
    def values(self) -> list[Tensor]:
        """All that has an entry a pair."""
        found = [self.noise, self.samples, self.labels]
        return found if self.trajectory is None else [*found, self.trajectory]

    def chunk(self, count: int) -> "list[Pairs]":
        """Cut into `count` parts."""
        cut = zip(*(values.chunk(count) for values in self.values), strict=True)
        return [Pairs(*values)._replace(positions=self.positions) for values in cut]


def read_split(
    store: PairStore, split: Split, device: torch.device, states: bool = False
) -> Pairs:
    """All pairs of a split that its mask keeps, in float32 on one device.

    Args:
        states: also read the trajectory, if the store has one.

    Raises:
        DataError: there are none, or one is missing or damaged.
    """
    noise, samples, *others = read_rows(store, split_rows(store, split), states).values
    if samples.dtype == torch.uint8:
        samples = from_uint8(samples)
    values = [noise.to(torch.float32), samples.to(torch.float32), *others]
    pairs = Pairs(*(value.to(device) for value in values))
    return pairs._replace(positions=state_positions(store, device) if states else None)


def split_rows(store: PairStore, split: Split) -> NDArray[np.int64]:
    """The rows of a split that students read, ascending.

    Raises:
        DataError: there are none.
    """
    rows = store.kept_rows(split)
    if not len(rows):
        raise DataError(f"{store.location} has no {split} pairs, or none that its filter keeps: "
                        "sample more, or loosen the filter")
    return rows


def read_rows(store: PairStore, rows: NDArray[np.int64], states: bool) -> Pairs:
    """Pairs at rest, in the host's memory; all between the first and the last are decoded.

    Args:
        rows: (n,) ascending, n ≥ 1.
        states: also read the trajectory, if the store has one.

    Raises:
        DataError: a pair is missing or damaged.
    """
    first, stop = int(rows[0]), int(rows[-1]) + 1
    block = store.read(range(first, stop), states)
    found = [values if stop - first == len(rows) else values[rows - first]
             for values in (block.noise, block.sample, block.label, block.trajectory)
             if values is not None]
    return Pairs(*map(torch.from_numpy, found))


def state_positions(store: PairStore, device: torch.device) -> Tensor | None:
    """Positions (k,) float32 of the states that a store keeps; None if it keeps none."""
    if not store.spec.states:
        return None
    return torch.tensor([state.position for state in store.spec.states], device=device)
