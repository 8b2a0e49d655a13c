"""What students minimise on a batch of pairs: weights of terms, of which each kind has some."""

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from kdm_core.config import Config
from kdm_core.losses.adversary import AdversaryConfig
from kdm_core.losses.distances import Distance, DistanceConfig, MSEConfig
from kdm_core.losses.drifting import DriftingConfig
from kdm_core.students.base import Student
from kdm_core.students.trajectory import State, States


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
        trajectory: weight of going from one state of the teacher's way to another (for `kdm` also
            in latents); 0 leaves it out.
        endpoint: weight of going from a state of the teacher's way to its sample, the mid-training
            objective of CMT (arXiv:2509.24526); 0 leaves it out.
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
    endpoint: float = Field(0.0, ge=0)
    latent_noise: float = Field(0.4, ge=0)

    @property
    def judges_distributions(self) -> bool:
        """Whether there is a term that compares sets of samples and not pairs."""
        return bool(self.adversarial or self.drifting)

    @property
    def takes_states(self) -> list[str]:
        """The terms with a weight that take states between noise and sample."""
        return [name for name in ("trajectory", "endpoint") if getattr(self, name)]

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


class Batch(NamedTuple):
    """What one evaluation of the objective sees, all with the batch first.

    Attributes:
        noise, samples: (B, *shape), of the same pairs.
        labels: (B,) int64, or None for a student without.
        latent_noise: (B, 2, d) standard normal, for the latents of samples and of noise.
        states: two states of each pair's way, for the term `trajectory`.
        inner: one between noise and sample, for `endpoint`.
        real: (B, *shape) samples of the data, with the labels of the batch.
    """

    noise: Tensor
    samples: Tensor
    labels: Tensor | None
    latent_noise: Tensor
    states: States | None = None
    inner: State | None = None
    real: Tensor | None = None


class Objective(nn.Module):
    """A student with its losses; the module that is compiled and distributed as a whole."""

    distance: Distance

    def __init__(self, student: Student, losses: LossConfig, distance: Distance) -> None:
        super().__init__()
        self.student, self.losses = student, losses
        self.distance = distance
        student.freeze_unused(losses)

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """As of `Student.terms`."""
        return self.student.terms(batch, self.losses, self.distance)


def total(losses: LossConfig, terms: dict[str, Tensor]) -> Tensor:
    """The weighted sum of an objective's terms."""
    weights = {**losses.model_dump(), "operator": 1.0}
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()
