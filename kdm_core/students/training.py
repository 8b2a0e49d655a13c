"""Training of a student on noise–sample pairs (algorithm 1)."""

import torch
from pydantic import Field
from torch import Tensor, nn

from kdm_core.compute import autocast, seeded, step_generator
from kdm_core.config import Config
from kdm_core.losses.discriminator import Discriminator, discriminator_loss, generator_loss
from kdm_core.losses.distances import DistanceConfig, MSEConfig, build_distance, mse
from kdm_core.pairs.reading import Pairs
from kdm_core.students.model import KDM
from kdm_core.training.batches import BatchOrder
from kdm_core.training.config import TrainingConfig
from kdm_core.training.ema import EMA
from kdm_core.training.loop import Task
from kdm_core.training.optimizer import ScheduledAdam


class LossConfig(Config):
    """Weights and distances of the objective (eqs. 4–9).

    Attributes:
        distance: d of the reconstruction and prediction terms.
        reconstruction, latent, prediction: weights of eqs. 5, 6 and 7.
        adversarial: weight of eq. 8 in eq. 9; 0 trains without a discriminator.
        latent_noise: standard deviation of the noise added to both latents while training.
    """

    distance: DistanceConfig = MSEConfig(kind="mse")
    reconstruction: float = Field(1.0, ge=0)
    latent: float = Field(1.0, ge=0)
    prediction: float = Field(1.0, ge=0)
    adversarial: float = Field(0.01, ge=0)
    latent_noise: float = Field(0.4, ge=0)


class StudentTask(Task):
    """Minimises eq. 9; `ema.shadow` is the result."""

    def __init__(
        self,
        student: KDM,
        losses: LossConfig,
        config: TrainingConfig,
        pairs: Pairs,
        validation: Pairs,
        seed: int,
    ) -> None:
        self.config, self.losses, self.seed = config, losses, seed
        self.student = student.train()
        self.pairs, self.validation = pairs, validation
        self.order = BatchOrder(len(pairs.noise), config.batch, seed)
        self.distance = build_distance(losses.distance, pairs.noise.device)
        self.ema = EMA(student, config.ema)
        self.adam = ScheduledAdam(student.parameters(), config)
        self.modules: dict[str, nn.Module] = {"student": student, "ema": self.ema}
        self.optimizers = {"adam": self.adam}
        if losses.adversarial:
            with seeded(seed):
                discriminator = Discriminator(student.spec)
            self.discriminator: Discriminator = discriminator.to(pairs.noise.device)
            self.adam_d = ScheduledAdam(self.discriminator.parameters(), config)
            self.modules["discriminator"] = self.discriminator
            self.optimizers["adam_d"] = self.adam_d

    def labels(self, labels: Tensor) -> Tensor | None:
        return labels if self.student.spec.num_classes else None

    def step(self, step: int) -> dict[str, Tensor]:
        device = self.pairs.noise.device
        rows = self.order(step).to(device)
        noise, samples = self.pairs.noise[rows], self.pairs.samples[rows]
        labels = self.labels(self.pairs.labels[rows])
        generator = step_generator(device, self.seed, step)
        with autocast(self.config.precision, device):
            terms, predicted = self.koopman_terms(noise, samples, labels, generator)
            if self.losses.adversarial:
                discriminator = self.discriminator.requires_grad_(False)
                fake: Tensor = discriminator(predicted)
                terms["adversarial"] = generator_loss(fake.float())
        terms["operator"] = self.student.operator.penalty()
        weights = {**self.losses.model_dump(), "operator": 1.0}
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        self.adam.step(loss, step)
        self.ema.update(self.student, step)
        if self.losses.adversarial:
            terms["discriminator"] = self.train_discriminator(samples, predicted.detach(), step)
        return {"loss": loss, **terms}

    def koopman_terms(
        self, noise: Tensor, samples: Tensor, labels: Tensor | None, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """L_rec, L_lat and L_pred of eqs. 5–7, and the prediction x̂₀ (algorithm 1, lines 2–12)."""
        student = self.student
        z_0 = student.encode_data(samples, labels)
        z_t = student.encode_noise(noise, labels)
        pushed = student.push(self.perturb(z_t, generator), labels)
        # One decoder call for both latents: half the kernel launches.
        both = torch.cat([self.perturb(z_0, generator), pushed])
        twice = None if labels is None else labels.repeat(2)
        reconstructed, predicted = student.decode(both, twice).chunk(2)
        return {
            "reconstruction": self.distance(samples, reconstructed),
            "latent": mse(z_0.float(), pushed.float()),
            "prediction": self.distance(samples, predicted),
        }, predicted

    def perturb(self, z: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(z.shape, generator=generator, device=z.device, dtype=torch.float32)
        return z + self.losses.latent_noise * noise

    def train_discriminator(self, samples: Tensor, predicted: Tensor, step: int) -> Tensor:
        with autocast(self.config.precision, samples.device):
            discriminator = self.discriminator.requires_grad_(True)
            loss = discriminator_loss(
                discriminator(samples).float(), discriminator(predicted).float()
            )
        self.adam_d.step(loss, step)
        return loss

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Pair MSE of the averaged weights on held-out pairs, as a share of the permuted figure."""
        noise, samples, labels = self.validation
        predicted = self.ema.shadow.sample(noise, self.labels(labels), self.config.precision)
        matched = mse(samples, predicted)
        return {"validation_mse": float(matched),
                "validation_mse_ratio": float(matched / mse(samples, predicted.roll(1, dims=0)))}
