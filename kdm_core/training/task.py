"""What the loop trains."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from kdm_core.compute import dropout_seed, seeded
from kdm_core.training.config import TrainingConfig
from kdm_core.training.distributed import own_seed
from kdm_core.training.ema import Averages
from kdm_core.training.optimizer import ScheduledOptimizer


class Task(ABC):
    """Something that is trained step by step and can be put into a checkpoint.

    Attributes:
        config: steps, batch, rates.
        seed: decides, with the step, all that is random in it.
        ema: the average, which is the result; also one of the modules.
        modules: everything with weights that a later step depends on (models, averages, critics).
        optimizers: everything with moments.
    """

    config: TrainingConfig
    seed: int
    ema: Averages[Any]
    modules: dict[str, nn.Module]
    optimizers: dict[str, ScheduledOptimizer]

    @abstractmethod
    def step(self, step: int) -> dict[str, Tensor]:
        """Train on the batch of step `step`; returns scalars for the curves, with "loss".

        All of them lie on one device. A step with one that is not finite counts as failed.
        """

    def prepare(self, step: int) -> None:  # noqa: B027  # most have all their data in memory
        """Wait for the data of a step: time that does not count as the step's."""

    def seeded_step(self, step: int) -> dict[str, Tensor]:
        """`step` with what dropout layers draw a function of (seed, step) and the process, too."""
        with seeded(own_seed(dropout_seed(self.seed, step))):
            return self.step(step)

    def validate(self) -> dict[str, float]:
        """Scalars measured on held-out data at each point of the curves; none by default."""
        return {}
