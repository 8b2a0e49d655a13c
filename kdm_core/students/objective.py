"""What a student minimises on a batch of pairs (eqs. 4–7; algorithm 1, lines 2–12)."""

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from kdm_core.config import Config
from kdm_core.losses.adversary import AdversaryConfig
from kdm_core.losses.distances import Distance, DistanceConfig, MSEConfig
from kdm_core.losses.drifting import DriftingConfig
from kdm_core.students.model import KDM, StudentConfig
from kdm_core.students.trajectory import States, trajectory_terms


class LossConfig(Config):
    """Weights and distances of the objective (eqs. 4–9).

    Attributes:
        distance: d of the reconstruction and prediction terms.
        reconstruction, latent, prediction: weights of eqs. 5, 6 and 7.
        stop_gradient: the latent of the sample is a fixed target of the latent term (not so in
            the paper).
        adversarial: weight of eq. 8 in eq. 9; 0 trains without a discriminator.
        adversary: the discriminator and its loss.
        drifting: weight of the loss that does without a discriminator; 0 leaves it out.
        drift: what drifts where.
        trajectory: weight of what intermediate states of the teacher add; 0 leaves them out.
        latent_noise: standard deviation of the noise added to both latents while training.
    """

    distance: DistanceConfig = MSEConfig(kind="mse")
    reconstruction: float = Field(1.0, ge=0)
    latent: float = Field(1.0, ge=0)
    prediction: float = Field(1.0, ge=0)
    stop_gradient: bool = False
    adversarial: float = Field(0.01, ge=0)
    adversary: AdversaryConfig = AdversaryConfig()
    drifting: float = Field(0.0, ge=0)
    drift: DriftingConfig = DriftingConfig()
    trajectory: float = Field(0.0, ge=0)
    latent_noise: float = Field(0.4, ge=0)

    @property
    def judges_distributions(self) -> bool:
        """Whether there is a term that compares sets of samples and not pairs."""
        return bool(self.adversarial or self.drifting)

    @property
    def asked_networks(self) -> set[str]:
        """The kinds of frozen networks that terms with a weight look through."""
        asked = [*(self.adversary.features if self.adversarial
                   and self.adversary.network == "features" else []),
                 *(self.drift.features if self.drifting else [])]
        return {config.kind for config in asked}

    @property
    def takes_data(self) -> bool:
        """Whether a term with a weight takes samples of the data as real."""
        return bool((self.adversarial and self.adversary.real == "data")
                    or (self.drifting and self.drift.real == "data"))


def check_losses(losses: LossConfig, student: StudentConfig) -> None:
    """Make sure that a student has what its losses need.

    Raises:
        ValueError: it has not; the message starts with the parameter's name.
    """
    if not (losses.reconstruction or losses.latent or losses.prediction):
        raise ValueError("losses: reconstruction, latent and prediction are all 0, so there is "
                         "nothing to learn; give one of them a weight")
    if student.encoders == "noise":
        for name in ("reconstruction", "latent"):
            if getattr(losses, name):
                raise ValueError(f"losses.{name}: a student with model.encoders: noise has no "
                                 "latent of samples; set it to 0")
    if losses.trajectory:
        if student.encoders != "shared":
            raise ValueError("losses.trajectory: intermediate states need an encoder that is told "
                             "their place; set model.encoders: shared")
        if student.operator.kind not in ("continuous", "factorised"):
            raise ValueError(f"losses.trajectory: a {student.operator.kind} operator has no "
                             "intermediate times; set model.operator.kind: continuous")


class Batch(NamedTuple):
    """What one evaluation of the objective sees, all with the batch first.

    Attributes:
        noise, samples: (B, *shape), of the same pairs.
        labels: (B,) int64, or None for a student without.
        latent_noise: (B, 2, d) standard normal, for the latents of samples and of noise.
        states: intermediate states of the pairs, for trajectory supervision.
        real: (B, *shape) samples of the data, with the labels of the batch.
    """

    noise: Tensor
    samples: Tensor
    labels: Tensor | None
    latent_noise: Tensor
    states: States | None = None
    real: Tensor | None = None


class Objective(nn.Module):
    """A student with its losses; the module that is compiled and distributed as a whole."""

    distance: Distance

    def __init__(self, student: KDM, losses: LossConfig, distance: Distance) -> None:
        super().__init__()
        self.student, self.losses = student, losses
        self.distance = distance
        learns = losses.reconstruction or (losses.latent and not losses.stop_gradient)
        if student.data_encoder is not None and not learns:
            student.data_encoder.requires_grad_(False)

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """The terms that have a weight, unweighted, and the predicted samples (B, *shape)."""
        student, losses = self.student, self.losses
        noise_0, noise_t = (losses.latent_noise * batch.latent_noise).unbind(1)
        z_t = student.encode_noise(batch.noise, batch.labels)
        pushed = student.push(z_t + noise_t, batch.labels)
        terms: dict[str, Tensor] = {}
        if losses.reconstruction or losses.latent:
            z_0 = student.encode_data(batch.samples, batch.labels)
            if losses.latent:
                target = z_0.detach() if losses.stop_gradient else z_0
                terms["latent"] = (target.float() - pushed.float()).square().mean()
        if losses.reconstruction:
            # One decoder call for both latents: half the kernel launches.
            both = torch.cat([z_0 + noise_0, pushed])
            twice = None if batch.labels is None else batch.labels.repeat(2)
            reconstructed, predicted = student.decode(both, twice).chunk(2)
            terms["reconstruction"], terms["prediction"] = self.distance(
                batch.samples, [reconstructed, predicted])
        else:
            predicted = student.decode(pushed, batch.labels)
            (terms["prediction"],) = self.distance(batch.samples, [predicted])
        if losses.trajectory:
            assert batch.states is not None
            terms["trajectory"] = trajectory_terms(student, batch.states, batch.labels,
                                                   self.distance)
        # The latent noise serves twice: no other random numbers are there for every pair.
        terms["operator"] = student.operator.penalty(batch.latent_noise[:, 0])
        return terms, predicted


def total(losses: LossConfig, terms: dict[str, Tensor]) -> Tensor:
    """The weighted sum of an objective's terms."""
    weights = {**losses.model_dump(), "operator": 1.0}
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()
