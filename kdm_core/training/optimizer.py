"""Adam with a warm-up, a schedule and clipping."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kdm_core.training.config import TrainingConfig


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The rate of step `step` (from 0)."""
    rate = config.lr * min(1.0, (step + 1) / config.warmup) if config.warmup else config.lr
    if config.schedule == "cosine" and step >= config.warmup:
        done = (step - config.warmup) / max(1, config.steps - config.warmup)
        rate *= (1 + math.cos(math.pi * done)) / 2
    return rate


class ScheduledAdam:
    """Adam whose learning rate is a function of the step, with clipped gradients."""

    def __init__(self, parameters: Iterable[nn.Parameter], config: TrainingConfig) -> None:
        self.config = config
        self.parameters = list(parameters)
        # The fused kernel updates all parameters in one call on every device it knows.
        self.adam = torch.optim.Adam(self.parameters, lr=config.lr, fused=True)

    def step(self, loss: Tensor, step: int) -> None:
        """One update that lowers `loss`."""
        self.adam.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.config.clip:
            nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        for group in self.adam.param_groups:
            group["lr"] = learning_rate(self.config, step)
        self.adam.step()

    def state_tensors(self) -> dict[str, Tensor]:
        """Adam's moments, named after the parameter's position."""
        return {f"{index}.{name}": value
                for index, state in self.adam.state_dict()["state"].items()
                for name, value in state.items()}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state_tensors`."""
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            index, name = key.split(".", 1)
            if value.ndim:
                # Adam's fused kernel walks a parameter and its moments in memory order, which
                # therefore has to be the same; a file has them in plain order.
                value = torch.empty_like(self.parameters[int(index)]).copy_(value)
            states.setdefault(int(index), {})[name] = value
        self.adam.load_state_dict({**self.adam.state_dict(), "state": states})
