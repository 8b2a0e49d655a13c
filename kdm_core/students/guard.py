"""Whether a loss on the distribution does its work, or has collapsed."""

import copy
from math import log
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdm_core.losses.adversary import AdversaryConfig
from kdm_core.metrics.manifold import DENSITY_K, indicators, neighbourhoods
from kdm_core.students.base import Student
from kdm_core.training.checkpoints import Record

COLLAPSED = 0.5
"""Of the highest recall of the phase: below it, half of the variety that there was is gone."""
DRIFTED = 0.1
"""Of the largest energy distance: risen by more than that, the samples are other ones."""
UNDECIDED = {"bce": 2 * log(2), "hinge": 2.0, "relativistic": log(2)}
"""What a discriminator's loss is that cannot tell one from the other."""
WON = 0.01
"""Of that: below it, the discriminator tells nearly all samples apart, and teaches nothing."""
LONG = 10
"""Points of the curves in a row."""


class Guard(nn.Module):
    """Measures the student on held-out noise beside what its loss takes as real, and keeps the
    best weights.

    In the samples' own values, of which every kind has some; coarse, and enough to see a collapse.

    Attributes:
        best: the student when its energy distance was smallest.
        least: that distance; infinite as long as nothing was measured.
    """

    LIMIT: ClassVar[int] = 2000
    least: Tensor

    def __init__(self, student: Student, real: Tensor) -> None:
        """`real`: (m, *shape), at most LIMIT of what counts as real."""
        super().__init__()
        self.real = real[: self.LIMIT].flatten(1).cpu().double()
        enough = len(self.real) > DENSITY_K
        self.neighbourhoods = neighbourhoods(self.real.numpy()) if enough else None
        self.spread = between(self.real)
        self.best = copy.deepcopy(student).eval().requires_grad_(False)
        self.register_buffer("least", torch.tensor(torch.inf))

    def measure(self, made: Tensor) -> dict[str, float]:
        """Figures of samples (n, *shape) of held-out noise.

        Returns:
            The energy distance (Székely & Rizzo 2013) as a share of twice the mean distance of
            samples to real ones: 0 for one distribution, at most 1. And the share of real samples
            that the others cover (recall), where there are enough of both.
        """
        values = made.flatten(1).cpu().double()
        apart = float(torch.cdist(values, self.real).mean())
        distance = 1 - (between(values) + self.spread) / (2 * apart) if apart else 0.0
        found = {"validation_distance": distance}
        if self.neighbourhoods is not None and len(values) > DENSITY_K:
            recall = indicators(neighbourhoods(values.numpy()), self.neighbourhoods).recall
            found["validation_recall"] = float(recall.mean())
        return found

    @torch.no_grad()
    def keep(self, distance: float, student: Student) -> None:
        """Remember a student whose distance is the smallest so far."""
        if distance < float(self.least):
            self.least.fill_(distance)
            self.best.load_state_dict(student.state_dict())


def between(values: Tensor) -> float:
    """The mean distance of two different ones of values (n, d); 0 of fewer than two."""
    n = len(values)
    return float(torch.cdist(values, values).sum()) / (n * (n - 1)) if n > 1 else 0.0


def problem(config: AdversaryConfig | None, records: list[Record]) -> str | None:
    """What the curves of a phase say is wrong, in words; None if all is well.

    Args:
        config: of its adversary, if it had one.
        records: its points, in order.
    """
    distances = [record["validation_distance"] for record in records]
    if distances and distances[-1] > min(distances) + DRIFTED:
        return (f"the energy distance of its samples to real ones rose from {min(distances):.3f} "
                f"to {distances[-1]:.3f} of the largest that there is")
    recalls = [record["validation_recall"] for record in records if "validation_recall" in record]
    if recalls and recalls[-1] < COLLAPSED * max(recalls):
        return (f"the share of real samples that its samples cover (recall) fell from "
                f"{max(recalls):.1%} to {recalls[-1]:.1%}")
    losses = [record["discriminator"] for record in records if "discriminator" in record]
    if config is not None and len(losses) >= LONG and all(
            loss < WON * UNDECIDED[config.loss] for loss in losses[-LONG:]):
        return (f"the discriminator's loss has been below {WON:.0%} of that of one that cannot "
                f"tell, for {LONG} points of the curves: it told nearly all samples apart and "
                "taught the student nothing")
    return None
