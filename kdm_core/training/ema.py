"""Exponential moving averages of weights."""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class EMA(nn.Module, Generic[M]):
    """A shadow of a model whose weights average the model's over the last steps.

    The decay is min(decay, (1 + s) / (10 + s)) at step s, so that the random start is forgotten.
    """

    def __init__(self, model: M, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.shadow: M = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: M, step: int) -> None:
        """Move the shadow towards `model` after step `step`."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.shadow.parameters()), list(model.parameters()), weight)
        for shadow, buffer in zip(self.shadow.buffers(), model.buffers(), strict=True):
            shadow.copy_(buffer)
