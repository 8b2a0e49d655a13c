"""Training of a student on noise–sample pairs (algorithm 1)."""

from typing import Literal

import torch
from torch import Tensor, nn

from kdm_core.compute import autocast, seeded, step_generator
from kdm_core.errors import KDMError
from kdm_core.losses.adversary import build_adversary
from kdm_core.losses.distances import build_distance
from kdm_core.losses.drifting import build_drifting
from kdm_core.pairs.reading.batches import PairReader
from kdm_core.pairs.reading.whole import Pairs
from kdm_core.students.base import Student
from kdm_core.students.given import NOTHING, Given, RealSamples
from kdm_core.students.guard import Guard
from kdm_core.students.objective import Batch, LossConfig, Objective, total
from kdm_core.students.trajectory import draw_inner, draw_places, state_at, states_at
from kdm_core.training.compilation import compiled
from kdm_core.training.config import TrainingConfig
from kdm_core.training.distributed import (
    check_batch,
    distributed,
    exchanging,
    own_rows,
    synchronised,
)
from kdm_core.training.ema import Averages
from kdm_core.training.optimizer import ScheduledOptimizer
from kdm_core.training.task import Task

Curves = dict[str, Tensor]
Made = tuple[Tensor, Tensor, Tensor | None]
"""Predictions, real samples, and the labels of both."""


class StudentTask(Task):
    """Minimises eq. 9; `ema.shadow` is the result.

    Raises:
        KDMError: the batch cannot be cut as the configuration asks for.
    """

    def __init__(
        self,
        student: Student,
        losses: LossConfig,
        config: TrainingConfig,
        reader: PairReader,
        validation: Pairs,
        seed: int,
        given: Given = NOTHING,
    ) -> None:
        self.config, self.losses, self.seed = config, losses, seed
        self.device, self.real = reader.device, given.real
        self.student = student.train()
        student.prepare(validation)
        self.reader, self.validation = reader, validation
        check_batch(reader.batch, config.accumulate, most=reader.order.count)
        objective = Objective(student, losses, build_distance(losses.distance, self.device))
        self.objective = distributed(compiled(objective, config, self.device))
        self.ema = Averages(student, config)
        self.optimizer = ScheduledOptimizer(trainable(student), config)
        self.modules: dict[str, nn.Module] = {"student": student, "ema": self.ema}
        self.optimizers = {"optimizer": self.optimizer}
        if losses.adversarial:
            with seeded(seed):
                self.adversary = build_adversary(losses.adversary, student.spec, self.device,
                                                 given.frozen)
            synchronised(self.adversary)
            self.discriminator_loss = distributed(self.adversary)
            self.optimizer_d = ScheduledOptimizer(trainable(self.adversary), config)
            self.modules["adversary"] = self.adversary
            self.optimizers["optimizer_d"] = self.optimizer_d
        if losses.drifting:
            self.drifting = build_drifting(losses.drift, student.spec, self.device, given.frozen)
        self.guard = None
        if losses.judges_distributions:
            self.guard = Guard(student, validation.samples if not losses.takes_data else
                               self.real_samples.subset(Guard.LIMIT, seed))
            self.modules["guard"] = self.guard

    @property
    def real_samples(self) -> RealSamples:
        """The samples of the data.

        Raises:
            KDMError: a loss asks for them, and nobody gave them.
        """
        if self.real is None:
            raise KDMError("losses: real: data needs the samples of the data, which were not "
                           "given; use real: pairs")
        return self.real

    def prepare(self, step: int) -> None:
        self.reader.prepare(step)

    def batches(self, step: int) -> list[Batch]:
        """This process's micro-batches of a step, whose random numbers are those of the global
        batch, however that is cut."""
        pairs, count = self.reader(step), self.reader.batch
        generator = step_generator(self.device, self.seed, step)
        latent_noise = torch.randn(count, 2, self.student.latent, generator=generator,
                                   device=self.device)
        places = (draw_places(count, pairs, generator) if self.losses.trajectory
                  else torch.zeros(count, 2, device=self.device))
        inner = (draw_inner(count, pairs, generator) if self.losses.endpoint
                 else torch.zeros(count, device=self.device))
        real = pairs.samples
        if self.losses.takes_data:
            chances = own_rows(torch.rand(count, generator=generator, device=self.device))
            real = self.real_samples.draw(self.student.spec.told(pairs.labels), chances)
        parts = self.config.accumulate
        return [self.batch(*cut) for cut in zip(
            pairs.chunk(parts), own_rows(latent_noise).chunk(parts), own_rows(places).chunk(parts),
            own_rows(inner).chunk(parts), real.chunk(parts), strict=True)]

    def batch(
        self, pairs: Pairs, latent_noise: Tensor, places: Tensor, inner: Tensor, real: Tensor
    ) -> Batch:
        scale = self.student.spec.sigma_data
        states = states_at(pairs, places, scale) if self.losses.trajectory else None
        state = state_at(pairs, inner, scale) if self.losses.endpoint else None
        labels = self.student.spec.told(pairs.labels)
        return Batch(pairs.noise, pairs.samples, labels, latent_noise, states, state,
                     real if self.losses.takes_data else None)

    def step(self, step: int) -> Curves:
        sums: Curves = {}
        made: list[Made] = []
        batches = self.batches(step)
        for index, batch in enumerate(batches, start=1):
            with exchanging(self.objective, index == len(batches)):
                predicted = self.descend(batch, sums)
            if self.losses.adversarial:
                made.append((predicted.detach(), real_of(batch, self.losses.adversary.real),
                             batch.labels))
        sums |= self.optimizer.update(step)
        self.ema.update(self.student, step)
        if self.losses.adversarial:
            self.train_adversary(made, sums, step)
        return sums

    def descend(self, batch: Batch, sums: Curves) -> Tensor:
        """Add a micro-batch's gradients, and its terms to the sums; returns its predictions."""
        with autocast(self.config.precision, self.device):
            predicted: Tensor
            terms, predicted = self.objective(batch)
            loss = total(self.losses, terms)
            if self.losses.adversarial:
                terms["adversarial"] = self.adversary.generator_loss(
                    predicted, real_of(batch, self.losses.adversary.real), batch.labels)
                loss = loss + self.losses.adversarial * terms["adversarial"]
            if self.losses.drifting:
                real = real_of(batch, self.losses.drift.real)
                terms |= self.drifting(predicted, real, batch.labels, batch.labels)
                loss = loss + self.losses.drifting * terms["drifting"]
        self.optimizer.backward(loss / self.config.accumulate)
        self.add(sums, {"loss": loss, **terms})
        return predicted

    def train_adversary(self, made: list[Made], sums: Curves, step: int) -> None:
        """One update of the discriminator, on the predictions that the student was updated by."""
        for index, each in enumerate(made, start=1):
            with exchanging(self.discriminator_loss, index == len(made)):
                with autocast(self.config.precision, self.device):
                    loss = self.discriminator_loss(*each)
                self.optimizer_d.backward(loss / self.config.accumulate)
            self.add(sums, {"discriminator": loss})
        sums |= {f"discriminator_{name}": value
                 for name, value in self.optimizer_d.update(step).items()}

    def add(self, sums: Curves, terms: Curves) -> None:
        """Add a micro-batch's terms to a step's, of which they are a share."""
        for name, term in terms.items():
            share = term.detach() / self.config.accumulate
            sums[name] = sums[name] + share if name in sums else share

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Pair MSE of the averaged weights on held-out pairs, as a share of the permuted figure."""
        noise, samples, labels = self.validation[:3]
        predicted = self.ema.shadow.generate(noise, self.student.spec.told(labels),
                                             self.config.precision)
        matched = (samples - predicted).square().mean()
        permuted = (samples - predicted.roll(1, dims=0)).square().mean()
        found = {"validation_mse": float(matched),
                 "validation_mse_ratio": float(matched / permuted)}
        if self.guard is not None:
            found |= self.guard.measure(predicted)
            self.guard.keep(found["validation_distance"], self.ema.shadow)
        return found


def real_of(batch: Batch, real: Literal["pairs", "data"]) -> Tensor:
    """What a loss takes as real (B, *shape)."""
    if real == "pairs":
        return batch.samples
    assert batch.real is not None
    return batch.real


def trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
