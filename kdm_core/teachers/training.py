"""Training of a teacher on data."""

import torch
from torch import Tensor

from kdm_core.compute import autocast, step_generator
from kdm_core.teachers import Teacher
from kdm_core.training.batches import BatchOrder
from kdm_core.training.config import TrainingConfig
from kdm_core.training.ema import EMA
from kdm_core.training.loop import Task
from kdm_core.training.optimizer import ScheduledAdam


class TeacherTask(Task):
    """Minimises a teacher's own objective; `ema.shadow` is the result."""

    def __init__(
        self, teacher: Teacher, config: TrainingConfig, samples: Tensor, labels: Tensor, seed: int
    ) -> None:
        """`samples` (n, *shape) float32 and `labels` (n,) int64, on the teacher's device."""
        self.config = config
        self.teacher = teacher.train()
        self.samples, self.labels, self.seed = samples, labels, seed
        self.order = BatchOrder(len(samples), config.batch, seed)
        self.ema = EMA(teacher, config.ema)
        self.adam = ScheduledAdam(teacher.parameters(), config)
        self.modules = {"teacher": teacher, "ema": self.ema}
        self.optimizers = {"adam": self.adam}

    def step(self, step: int) -> dict[str, Tensor]:
        device = self.samples.device
        rows = self.order(step).to(device)
        labels = self.labels[rows] if self.teacher.spec.num_classes else None
        generator: torch.Generator = step_generator(device, self.seed, step)
        with autocast(self.config.precision, device):
            loss = self.teacher.loss(self.samples[rows], labels, generator)
        self.adam.step(loss, step)
        self.ema.update(self.teacher, step)
        return {"loss": loss}
