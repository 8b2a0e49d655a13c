"""The order in which a training run sees its data, as a function of (seed, step)."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdm_core.errors import at_most


class BatchOrder:
    """Batches of indices, without replacement within an epoch, shuffled anew in every epoch.

    Step s always gets the same indices, so a resumed run goes on where it was cut.
    """

    def __init__(
        self, count: int, batch: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        """`count` items in batches of `batch`; an epoch's incomplete batch is dropped.

        Of fewer items than a batch, each batch is all of them, as `adapted` says.

        The indices lie on `device`: moved there once an epoch, since each copy from the host's
        memory to a GPU waits for all that the GPU has still to do.
        """
        self.count = count
        self.batch = at_most("training.batch", batch, count, "samples to train on")
        self.per_epoch = count // self.batch
        self.seed = seed
        self.device = torch.device(device)
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def __call__(self, step: int) -> Tensor:
        """Indices (batch,) int64 of step `step`."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            sequence = np.concatenate(self.windows(epoch))
            self._order = torch.from_numpy(sequence).to(self.device)
            self._epoch = epoch
        return self._order[position * self.batch : (position + 1) * self.batch]

    def windows(self, epoch: int) -> list[NDArray[np.int64]]:
        """The indices of an epoch in the order of their use, cut into what is mixed at a time."""
        return [self.generator(epoch).permutation(self.count)]

    def generator(self, epoch: int) -> np.random.Generator:
        """What an epoch is shuffled with."""
        return np.random.Generator(np.random.Philox(key=self.seed, counter=[epoch, 0, 0, 1]))
