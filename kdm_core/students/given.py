"""What a student's losses may take from the run besides the pairs."""

from typing import NamedTuple

import torch
from torch import Tensor

from kdm_core.errors import DataError
from kdm_core.losses.features import NOWHERE, Frozen
from kdm_core.values import from_uint8


class RealSamples:
    """Samples of the data, one of which is drawn for every pair of a batch: of its class.

    What is drawn therefore has the labels of the batch, whatever their law.

    Attributes:
        samples: (m, *shape) at rest, uint8 images or floats, those of a class together.
    """

    def __init__(self, samples: Tensor, labels: Tensor | None, classes: int) -> None:
        """
        Args:
            samples: (m, *shape) on the device of the training.
            labels: (m,) int64 in the student's own numbers; -1 for classes it has not. None, or
                anything where `classes` is 0, for all alike.
            classes: of the student; 0 for none.

        Raises:
            DataError: a class has no samples.
        """
        if not classes or labels is None:
            labels = torch.zeros(len(samples), dtype=torch.int64, device=samples.device)
            classes = 1
        order = labels.argsort(stable=True)
        order = order[labels[order] >= 0]
        self.samples = samples[order]
        self.counts = torch.bincount(labels[order], minlength=classes)
        self.first = self.counts.cumsum(0) - self.counts
        if (empty := (self.counts == 0).nonzero().flatten().tolist()):
            raise DataError(f"losses: real: data: class {empty[0]} of the pairs has no training "
                            "samples; use real: pairs, or supply some")

    def draw(self, labels: Tensor | None, chances: Tensor) -> Tensor:
        """Samples (B, *shape) float32, with replacement.

        Args:
            labels: (B,) of the batch; None for a student without classes.
            chances: (B,) uniform in [0, 1), by which they are drawn.
        """
        counts = self.counts[0] if labels is None else self.counts[labels]
        first = self.first[0] if labels is None else self.first[labels]
        # A product may round up to the count itself.
        places = torch.minimum((chances * counts).to(torch.int64), counts - 1)
        return at_work(self.samples[first + places])

    def subset(self, count: int, seed: int) -> Tensor:
        """At most `count` of all samples, float32, the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(self.samples), generator=generator)[:count]
        return at_work(self.samples[rows.to(self.samples.device)])


class Given(NamedTuple):
    """What losses ask for; each is None where the run has none or no loss asks for it."""

    real: RealSamples | None = None
    frozen: Frozen = NOWHERE


NOTHING = Given()


def at_work(samples: Tensor) -> Tensor:
    return from_uint8(samples) if samples.dtype == torch.uint8 else samples.to(torch.float32)
