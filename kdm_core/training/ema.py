"""Averages of weights over the steps of a training."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from kdm_core.training.config import TrainingConfig
from kdm_core.training.profiles import decay, exponent

M = TypeVar("M", bound=nn.Module)


class Averages(nn.Module, Generic[M]):
    """All averages of one model's weights, moved in one pass.

    Attributes:
        shadow: the model with averaged weights; its buffers are always the model's own. The
            average is exponential with decay min(ema, (1 + s) / (10 + s)) at step s, so that the
            random start is forgotten; once a training with `post_hoc` is complete, it is the
            average that was chosen.
        profiles: of every width in `post_hoc.profiles`, the parameters of that average in the
            model's order; empty without `post_hoc`.
    """

    def __init__(self, model: M, config: TrainingConfig) -> None:
        super().__init__()
        self.decay = config.ema
        self.shadow: M = copy.deepcopy(model).eval().requires_grad_(False)
        widths = config.post_hoc.profiles if config.post_hoc is not None else []
        self.exponents = [exponent(width) for width in widths]
        self.profiles = nn.ModuleList(
            nn.ParameterList(parameter.clone() for parameter in self.shadow.parameters())
            for _ in widths).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: M, step: int) -> None:
        """Move all averages towards `model` after step `step` (from 0)."""
        parameters: list[Tensor] = list(model.parameters())
        pace = [1 - min(self.decay, (1 + step) / (10 + step)),
                *(1 - decay(gamma, step + 1) for gamma in self.exponents)]
        averages: list[Tensor] = [average for group in (self.shadow, *self.profiles)
                                  for average in group.parameters()]
        torch._foreach_lerp_(averages, parameters * len(pace),
                             [weight for weight in pace for _ in parameters])
        for shadow, buffer in zip(self.shadow.buffers(), model.buffers(), strict=True):
            shadow.copy_(buffer)

    def named_profile(self, index: int) -> dict[str, Tensor]:
        """The parameters of an average of `profiles`, named as the model's."""
        names = (name for name, _ in self.shadow.named_parameters())
        return dict(zip(names, self.profiles[index].parameters(), strict=True))

    @torch.no_grad()
    def show(self, parameters: dict[str, Tensor]) -> None:
        """Make `shadow` the model with these parameters (of all names that it has)."""
        for name, shadow in self.shadow.named_parameters():
            shadow.copy_(parameters[name])
