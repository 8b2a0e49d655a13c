"""The average of weights over the steps of a training."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from kdm_core.training.config import TrainingConfig

M = TypeVar("M", bound=nn.Module)


class Averages(nn.Module, Generic[M]):
    """The average of a model's weights.

    Attributes:
        shadow: the model with averaged weights; its buffers are always the model's own. The
            average is exponential with decay min(ema, (1 + s) / (10 + s)) at step s, so that the
            random start is forgotten.
    """

    def __init__(self, model: M, config: TrainingConfig) -> None:
        super().__init__()
        self.decay = config.ema
        self.shadow: M = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: M, step: int) -> None:
        """Move the average towards `model` after step `step` (from 0)."""
        averages: list[Tensor] = list(self.shadow.parameters())
        pace = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(averages, list(model.parameters()), [pace] * len(averages))
        for shadow, buffer in zip(self.shadow.buffers(), model.buffers(), strict=True):
            shadow.copy_(buffer)
