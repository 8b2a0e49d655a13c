"""The order in which a training run sees its data, as a function of (seed, step)."""

import numpy as np
import torch
from torch import Tensor


class BatchOrder:
    """Batches of indices, without replacement within an epoch, shuffled anew in every epoch.

    Step s always gets the same indices, so a resumed run goes on where it was cut.
    """

    def __init__(self, count: int, batch: int, seed: int) -> None:
        """`count` items in batches of at most `batch`; an epoch's incomplete batch is dropped."""
        self.count = count
        self.batch = min(batch, count)
        self.per_epoch = count // self.batch
        self.seed = seed
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def __call__(self, step: int) -> Tensor:
        """Indices (batch,) int64 of step `step`, on the CPU."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            philox = np.random.Philox(key=self.seed, counter=[epoch, 0, 0, 1])
            generator = np.random.Generator(philox)
            self._order = torch.from_numpy(generator.permutation(self.count))
            self._epoch = epoch
        return self._order[position * self.batch : (position + 1) * self.batch]
