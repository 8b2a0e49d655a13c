"""Short trainings, killed ones, and comparison of what became of them."""

from collections.abc import Callable

import torch
from torch import Tensor

from kdm_core.training.config import TrainingConfig
from kdm_core.training.loop import Task


def config(**changes: object) -> TrainingConfig:
    return TrainingConfig.model_validate({
        "steps": 24, "batch": 8, "lr": 1e-3, "schedule": "cosine", "warmup": 3, "ema": 0.9,
        "precision": "fp32", "checkpoint_every": 5, "log_every": 3, "clip": 1.0, **changes})


def state(task: Task) -> dict[str, Tensor]:
    return {f"{name}/{key}": value for name, module in task.modules.items()
            for key, value in module.state_dict().items()}


def assert_same(first: Task, second: Task) -> None:
    for name, value in state(first).items():
        assert torch.equal(value, state(second)[name]), name


class Killed(BaseException):
    pass


def killed_at(step: int) -> Callable[[int], None]:
    def kill(done: int) -> None:
        torch.rand(1)  # as any other code may
        if done == step:
            raise Killed

    return kill
