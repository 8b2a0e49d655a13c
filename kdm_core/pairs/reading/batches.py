"""What all readers of pairs have in common: batches as a function of the step."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from types import TracebackType

import torch
from torch import Tensor

from kdm_core.pairs.reading.whole import Pairs
from kdm_core.training.batches import BatchOrder
from kdm_core.training.distributed import own_rows


class PairReader(AbstractContextManager["PairReader"], ABC):
    """Batches of pairs on a device; which pairs they hold depends on the order alone.

    Where several processes train together, each gets its rows of the same global batch.

    Attributes:
        order: items of the global batch of each step.
        device: where batches are.
    """

    def __init__(self, order: BatchOrder, device: torch.device) -> None:
        self.order, self.device = order, device

    @property
    def batch(self) -> int:
        """Pairs of a global batch."""
        return self.order.batch

    @property
    def per_epoch(self) -> int:
        """Batches of an epoch."""
        return self.order.per_epoch

    @abstractmethod
    def __call__(self, step: int) -> Pairs:
        """This process's pairs of a step, in float32 (trajectories in float16).

        They stay as they are until the next but one call, for which their memory may be used.

        Raises:
            DataError: a pair is missing or damaged.
        """

    def prepare(self, step: int) -> None:  # most readers have nothing to wait for
        """Wait until the pairs of a step are in memory.

        Raises:
            DataError: as calling the reader.
        """

    def close(self) -> None:  # most readers have nothing to end
        """End what works in the background; the reader is of no use after that."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Buffers:
    """Float32 batches in memory that is used again: on CPUs fresh memory costs more than its
    filling. Two take turns, so that a batch outlives the making of the next."""

    def __init__(self, rest: Pairs, order: BatchOrder, device: torch.device) -> None:
        """For this process's batches of pairs that are stored as `rest` is."""
        self.size = len(own_rows(torch.empty(order.batch)))
        shapes = [values.shape[1:] for values in rest.values]
        dtypes = [torch.float32, torch.float32, *(values.dtype for values in rest.values[2:])]
        self.turns = [[torch.empty(self.size, *shape, dtype=dtype, device=device)
                       for shape, dtype in zip(shapes, dtypes, strict=True)] for _ in range(2)]

    def next(self) -> list[Tensor]:
        """The tensors to fill, as `Pairs.values` has them."""
        self.turns.reverse()
        return self.turns[0]


def convert(rest: Tensor, target: Tensor) -> None:
    """Write values at rest (uint8 images, or numbers of any type) over those of a batch."""
    target.copy_(rest)
    if rest.dtype == torch.uint8:
        target.div_(127.5).sub_(1)  # as kdm_core.values.from_uint8, without fresh memory
