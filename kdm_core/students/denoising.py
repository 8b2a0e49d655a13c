"""What students share that are a teacher's denoiser, trained to reach the sample in one evaluation.

f(x_t, t) = D(x_t, t): its network, preconditioning and times are those of the teacher, so that it
may start at the teacher's weights and means by a state what the teacher means.
"""

from collections.abc import Mapping
from math import cos, pi, sin
from typing import TYPE_CHECKING, Any, Self

import torch
from pydantic import TypeAdapter, ValidationError, field_validator
from torch import Tensor

from kdm_core.errors import KDMError, MismatchError
from kdm_core.labels import Labels
from kdm_core.losses.distances import Distance
from kdm_core.networks import AnyNetworkConfig, ForeignNetwork, IdentityConfig, Network
from kdm_core.samples import SampleSpec
from kdm_core.students.base import Student, StudentKind
from kdm_core.students.seen import recorded_phases
from kdm_core.teachers import TrainableConfig, build_teacher
from kdm_core.teachers.base import per_sample

if TYPE_CHECKING:
    from kdm_core.students.objective import Batch, LossConfig

LEFT_OUT = "give the student a denoiser of its own: a network and a preconditioning"


class DenoisingConfig(StudentKind):
    """Configuration of such a student.

    Attributes:
        denoiser: network, preconditioning and grid, in the form that teachers have; the teacher's
            where it is left out.
    """

    denoiser: TrainableConfig | None = None

    @field_validator("denoiser")
    @classmethod
    def _own(cls, denoiser: TrainableConfig | None) -> TrainableConfig | None:
        if denoiser is not None and isinstance(denoiser.network, ForeignNetwork):
            raise ValueError(f"network.kind: {denoiser.network.kind} is a network of others; "
                             "students are made of mlp, transformer, unet, song_unet, "
                             "dhariwal_unet or edm2_unet")
        return denoiser

    def completed(self, teacher: Mapping[str, Any] | None) -> Self:
        if self.denoiser is not None:
            return self
        if teacher is None:
            raise MismatchError(f"nobody knows the teacher of these pairs; {LEFT_OUT}",
                                field="denoiser")
        if "network" not in teacher:
            raise MismatchError(f"this teacher is a closed form without a network; {LEFT_OUT}",
                                field="denoiser")
        try:
            return type(self).model_validate({**self.model_dump(), "denoiser": dict(teacher)})
        except ValidationError as error:
            kind = teacher["network"].get("kind")
            raise MismatchError(f"the teacher's network ({kind}) is one of others, of which no "
                                f"student is made; {LEFT_OUT}", field="denoiser") from error

    def networks(self) -> dict[str, AnyNetworkConfig | IdentityConfig]:
        return {} if self.denoiser is None else {"denoiser.network": self.denoiser.network}

    def check(self, losses: "LossConfig") -> None:
        super().check(losses)
        if not losses.prediction:
            raise ValueError("losses.prediction: it is 0, so there is nothing to learn; give it a "
                             "weight")


class DenoisingStudent(Student):
    """See `DenoisingConfig`, which must be complete.

    Attributes:
        start: the time at which the noise is, in the teacher's own time.
        start_scale: standard deviation of the state there.
        end_told: what the network is told of the time where samples are.
    """

    config: DenoisingConfig
    start: Tensor

    def __init__(self, config: DenoisingConfig, spec: SampleSpec) -> None:
        """
        Raises:
            KDMError: there is no such denoiser, or the configuration leaves it to a teacher.
        """
        super().__init__(config, spec)
        if config.denoiser is None:
            raise KDMError(f"it is left to a teacher of which nothing is known; {LEFT_OUT}",
                           field="denoiser")
        self.denoiser = build_teacher(config.denoiser, spec)
        self.register_buffer("start", torch.tensor(self.denoiser.start), persistent=False)
        self.start_scale, self.end_told = 1.0, 0.0
        if not self.start.is_meta:  # where only shapes are asked for
            self.start_scale = float(self.denoiser.noise_scale(self.start))
            self.end_told = (self.denoiser.network_times() or [0.0])[0]

    @property
    def network(self) -> Network:
        network: Network = self.denoiser.network  # type: ignore[assignment]
        return network

    def networks(self) -> list[Network]:
        return [self.network]

    def check_teacher(self, teacher: Mapping[str, Any]) -> None:
        theirs: TrainableConfig = TypeAdapter(TrainableConfig).validate_python(dict(teacher))
        own = self.config.denoiser
        if without_network(theirs) != without_network(own):
            raise MismatchError("the preconditioning or grid of model.denoiser is not the "
                                "teacher's, whose weights mean something else; leave denoiser "
                                "out, or use init: random", field="")

    # From states to samples

    def forward(self, noise: Tensor, labels: Labels | None = None) -> Tensor:
        given = self.heeded(labels, noise)
        made = self.denoise(noise * self.start_scale, self.start, given, 1.0)
        return made.to(torch.float32)

    def denoise(
        self, x: Tensor, time: Tensor, labels: Tensor | None, position: Tensor | float
    ) -> Tensor:
        """f(x, t): the sample (B, *shape) to which a state leads.

        Args:
            x: (B, *shape) as the teacher's ODE has it.
            time: the teacher's, a scalar or (B,).
            position: where between samples (0) and noise (1) that is.
        """
        return self.denoiser.denoise(x, time, labels)

    def from_state(self, state: Tensor, position: Tensor, labels: Tensor | None) -> Tensor:
        """Samples (B, *shape) from states of unit variance (B, *shape) at positions (B,)."""
        time = self.time_at(position)
        return self.denoise(state * per_sample(self.scale(time), state), time, labels, position)

    def time_at(self, position: Tensor) -> Tensor:
        """The teacher's times (B,), float32, at positions (B,); of noise that of its start."""
        level = self.spec.sigma_data * torch.tan(pi / 2 * position.double())
        time = self.denoiser.time_at(level).to(torch.float32)
        found: Tensor = torch.where(position < 1, time, self.start)
        return found

    def scale(self, time: Tensor) -> Tensor:
        """Standard deviation of states at times (B,), float32."""
        alpha, sigma = self.denoiser.path(time.double())
        scale: Tensor = torch.hypot(alpha * self.spec.sigma_data, sigma).to(torch.float32)
        return scale

    def check_steps(self, steps: int) -> None:
        if steps < 1:
            raise KDMError(f"steps: {steps} are none; use 1 or more")
        phases = recorded_phases(self.provenance)
        terms = [phase["losses"] for phase in phases if "losses" in phase]
        if steps > 1 and terms and not any(
                losses.get("endpoint") or losses.get("trajectory") for losses in terms):
            raise KDMError(f"steps: {steps} lead through states between noise and sample, of which "
                           "this student has learned nothing; use 1, or train it with losses."
                           "endpoint")

    def refine(self, noise: Tensor, labels: Labels | None, steps: int) -> Tensor:
        """As consistency models do, at positions that are even, but with the noise that it began
        with in place of fresh one: a sample is a function of its noise."""
        self.check_steps(steps)
        given = self.heeded(labels, noise)
        samples: Tensor = self(noise, given)
        for left in range(steps - 1, 0, -1):
            angle = pi / 2 * left / steps
            position = torch.full((len(noise),), left / steps, device=noise.device)
            state = cos(angle) * samples / self.spec.sigma_data + sin(angle) * noise
            samples = self.from_state(state, position, given).to(torch.float32)
        return samples

    # What it minimises

    def terms(
        self, batch: "Batch", losses: "LossConfig", distance: Distance
    ) -> tuple[dict[str, Tensor], Tensor]:
        """d(f(noise), x₀), and the same of a state between if `endpoint` has a weight."""
        if not losses.endpoint:
            predicted = self(batch.noise, batch.labels)
            (prediction,) = distance(batch.samples, [predicted])
            return {"prediction": prediction}, predicted
        assert batch.inner is not None
        # One evaluation for both: half the kernel launches.
        state, position = batch.inner
        twice = None if batch.labels is None else batch.labels.repeat(2)
        both = self.from_state(torch.cat([batch.noise, state]),
                               torch.cat([torch.ones_like(position), position]), twice)
        predicted, reached = both.to(torch.float32).chunk(2)
        prediction, endpoint = distance(batch.samples, [predicted, reached])
        return {"prediction": prediction, "endpoint": endpoint}, predicted


def without_network(config: TrainableConfig | None) -> dict[str, Any]:
    return {} if config is None else config.model_dump(exclude={"network", "p_mean", "p_std"})
