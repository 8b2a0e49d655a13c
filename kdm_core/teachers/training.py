"""Training of a teacher on data."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from kdm_core.compute import autocast, step_generator
from kdm_core.errors import KDMError, adapted
from kdm_core.teachers import Denoiser, FlowMatching, Teacher
from kdm_core.teachers.augmentation import AugmentationConfig, augment, check_augmentation
from kdm_core.training.batches import BatchOrder
from kdm_core.training.compilation import compiled
from kdm_core.training.config import TrainingConfig
from kdm_core.training.distributed import check_batch
from kdm_core.training.ema import Averages
from kdm_core.training.optimizer import ScheduledOptimizer
from kdm_core.training.task import Task


class TeacherTask(Task):
    """Minimises a teacher's own objective; `ema.shadow` is the result."""

    def __init__(
        self,
        teacher: Teacher,
        config: TrainingConfig,
        samples: Tensor,
        labels: Tensor,
        seed: int,
        label_dropout: float = 0.0,
        augmentation: AugmentationConfig | None = None,
    ) -> None:
        """Make ready to train.

        Args:
            teacher: with fresh weights.
            config: steps, batch, rates.
            samples: (n, *shape) float32, on the teacher's device.
            labels: (n,) int64, on the teacher's device.
            seed: of batches, noise, dropout and augmentation.
            label_dropout: share of the labels that are replaced by −1, in [0, 1), so that the
                teacher also learns to do without (classifier-free guidance: Ho and Salimans 2022,
                arXiv:2207.12598, algorithm 1).
            augmentation: of images; None for none.

        Raises:
            KDMError: teachers of this kind are not trained, there are no labels to be dropped,
                samples or network are not made for that augmentation, or the batch cannot be cut
                into that many micro-batches.
        """
        if not isinstance(teacher, Denoiser | FlowMatching):
            raise KDMError(f"teacher: a {type(teacher).__name__} is not trained; use a denoiser or "
                           "flow_matching")
        if label_dropout and not teacher.spec.num_classes:
            raise KDMError("teacher.label_dropout: this teacher takes no labels; set it to 0, or "
                           "data.conditional to true")
        if augmentation is not None:
            check_augmentation(augmentation, teacher.spec, teacher.config.network)
        self.config = config
        self.teacher = teacher.train()
        self.samples, self.labels, self.seed = samples, labels, seed
        self.label_dropout, self.augmentation = label_dropout, augmentation
        self.order = BatchOrder(len(samples), config.batch, seed, samples.device)
        check_batch(self.order.batch, config.accumulate, most=self.order.count)
        self.ema = Averages(teacher, config)
        self.optimizer = ScheduledOptimizer(teacher.parameters(), config)
        self.modules = {"teacher": teacher, "ema": self.ema}
        self.optimizers = {"optimizer": self.optimizer}
        if augmentation is None:
            compiled(teacher.network, config, samples.device)
        elif config.compile == "on":  # the hook differs in every step: compiled each time
            adapted("teacher.training.compile: a training with augmentation is not compiled")

    def step(self, step: int) -> dict[str, Tensor]:
        generator = step_generator(self.samples.device, self.seed, step)
        parts = self.order(step).chunk(self.config.accumulate)
        losses = [self.descend(rows, generator) for rows in parts]
        curves = self.optimizer.update(step)
        self.ema.update(self.teacher, step)
        return {"loss": torch.stack(losses).mean(), **curves}

    def descend(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Add the gradients of a micro-batch; returns its loss."""
        labels = self.teacher.spec.told(self.labels[rows])
        if labels is not None and self.label_dropout:
            labels = drop_labels(labels, self.label_dropout, generator)
        samples, changes = self.samples[rows], None
        if self.augmentation is not None:
            samples, changes = augment(samples, self.augmentation, generator)
        with autocast(self.config.precision, rows.device), self.told(changes):
            loss = self.teacher.loss(samples, labels, generator)
        self.optimizer.backward(loss / self.config.accumulate)
        return loss.detach()

    @contextmanager
    def told(self, changes: Tensor | None) -> Iterator[None]:
        """A context in which the network is given augmentation labels (B, 9).

        A teacher's objective and ODE know nothing of them: only here are they ever not zero.
        """
        if changes is None:
            yield
            return
        hook = self.teacher.network.register_forward_pre_hook(
            lambda network, inputs: (*inputs, changes))
        try:
            yield
        finally:
            hook.remove()


def drop_labels(labels: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Replace each label (B,) by −1 with probability `share`."""
    dropped = torch.rand(labels.shape, generator=generator, device=labels.device) < share
    return labels.masked_fill(dropped, -1)
