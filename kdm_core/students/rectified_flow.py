"""`rectified_flow`: 2-rectified flow++ (Lee, Lin, Fanti 2024, arXiv:2405.20320).

A velocity on the straight lines x_t = (1 − t) x₀ + t z between a pair's sample and noise. Where the
lines of a teacher's own pairs hardly cross, one step along it is a sample. It starts at the
teacher's weights by the change of time and scale under which both mean the same: at the noise level
sigma / alpha = t / (1 − t) the teacher's D(x_t alpha / (1 − t)) is the end x₀ of the line, and
(x_t − D) / t its velocity.
"""

from math import expm1, sqrt
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdm_core.compute import Precision, autocast, state_dtype
from kdm_core.errors import KDMError
from kdm_core.labels import Labels
from kdm_core.losses.distances import Distance
from kdm_core.networks.get import GETConfig
from kdm_core.samples import SampleSpec
from kdm_core.solvers import FixedSolver, Path, solve
from kdm_core.students.denoising import DenoisingConfig, DenoisingStudent
from kdm_core.teachers.base import per_sample

if TYPE_CHECKING:
    from kdm_core.students.objective import Batch, LossConfig

LEAST = 1e-5
"""The least time of training, as published; the velocity divides by it."""
ROUNDING = 1e-6
"""A time that is so near to the first one is the first, which float32 cannot tell from it."""
FARTHEST = 1e8
"""A noise level that stands for an infinite one."""


class RectifiedFlowConfig(DenoisingConfig):
    """The velocity of straight lines.

    Of `losses.prediction` the mean squared error is that of the velocity, the pseudo-Huber distance
    that of the velocity times 1 − t, and LPIPS that of the line's end over t (configurations B to
    F of the paper).

    Attributes:
        concentration: a of the density of times in training, ∝ exp(a t) + exp(−a t): how much more
            often they are near noise and samples than between.
    """

    kind: Literal["rectified_flow"] = "rectified_flow"
    concentration: float = Field(4.0, gt=0)
    unused: ClassVar = ("reconstruction", "latent", "latent_noise", "trajectory", "endpoint",
                        "adversarial", "drifting")

    def check(self, losses: "LossConfig") -> None:
        super().check(losses)
        if self.denoiser is not None and isinstance(self.denoiser.network, GETConfig):
            raise ValueError("denoiser.network.kind: get takes no time, and a velocity has one; "
                             "use another")

    def describe(self) -> str:
        return "velocity of straight lines between noise and sample"

    def build(self, spec: SampleSpec) -> "RectifiedFlow":
        return RectifiedFlow(self, spec)


class LineStudent(DenoisingStudent):
    """What students share that learn of the straight lines between noises and samples.

    Attributes:
        first: the time of noise, at which the teacher's path begins: sigma / (alpha + sigma).
        entry: standard deviation of the state there, on the line: `first`, but for teachers that
            begin with a little more.
    """

    def __init__(self, config: DenoisingConfig, spec: SampleSpec) -> None:
        super().__init__(config, spec)
        self.first = self.entry = 1.0
        if not self.start.is_meta:
            alpha, sigma = self.denoiser.path(self.start.double())
            self.first = float(sigma / (alpha + sigma))
            self.entry = self.first * self.start_scale / float(sigma)

    def end_of(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """The sample (B, *shape) at the end of the line on which states x_t (B, *shape) lie.

        Args:
            t: (B,), in (0, `first`].
        """
        return self.denoise(*self.teachers(x, t), labels, t)

    def teachers(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """States x_t (B, *shape) as the teacher has them, and its times (B,)."""
        time = self.line_time(t)
        line = torch.hypot((1 - t) * self.spec.sigma_data, t)
        return x * per_sample(self.scale(time) / line, x), time

    def line_time(self, t: Tensor) -> Tensor:
        """The teacher's times (B,), float32, at which its noise level is t / (1 − t)."""
        level = (t.double() / (1 - t.double())).clamp(max=FARTHEST)
        time = self.denoiser.time_at(level).to(torch.float32)
        return torch.where(t < self.first * (1 - ROUNDING), time, self.start)

    def check_steps(self, steps: int) -> None:
        if steps < 1:
            raise KDMError(f"steps: {steps} are none; use 1 or more")


class RectifiedFlow(LineStudent):
    """See `RectifiedFlowConfig`, which must be complete."""

    config: RectifiedFlowConfig
    latent = 1  # the two normal values of a pair decide its time

    def refine(self, noise: Tensor, labels: Labels | None, steps: int) -> Tensor:
        """By the published rule: after each step back on the line to the noise that it began with.
        """
        self.check_steps(steps)
        given = self.heeded(labels, noise)
        samples: Tensor = self(noise, given)
        for left in range(steps - 1, 0, -1):
            t = torch.full((len(noise),), self.first * left / steps, device=noise.device)
            x = (1 - per_sample(t, noise)) * samples + per_sample(t, noise) * noise
            samples = self.end_of(x, t, given).to(torch.float32)
        return samples

    @torch.inference_mode()
    def invert(
        self, samples: Tensor, labels: Labels | None = None, steps: int = 18,
        precision: Precision = "auto",
    ) -> Tensor:
        """The noises (B, *shape) from which samples (B, *shape) come: the ODE of the velocity,
        backwards from the least noise level, by Heun's method.

        Raises:
            KDMError: these are no labels of this student's.
        """
        given = self.known(labels, samples)
        times = self.line_times(steps, samples.device).flip(0)
        state = (1 - times[0]) * samples.to(times.dtype)
        found = solve(FixedSolver(kind="heun", steps=steps), Line(self, given, precision), state,
                      times)
        return (found.state / self.entry).to(torch.float32)

    @torch.inference_mode()
    def follow(
        self, noise: Tensor, labels: Labels | None = None, steps: int = 18,
        precision: Precision = "auto",
    ) -> Tensor:
        """Samples (B, *shape) of noises (B, *shape) by the ODE of the velocity, Heun's method."""
        given = self.known(labels, noise)
        times = self.line_times(steps, noise.device)
        times = torch.cat([times, torch.zeros_like(times[:1])])
        found = solve(FixedSolver(kind="heun", steps=steps), Line(self, given, precision),
                      self.entry * noise.to(times.dtype), times)
        return found.state.to(torch.float32)

    def line_times(self, steps: int, device: torch.device) -> Tensor:
        """The times (steps,) of the teacher's grid, from noise to its least noise level."""
        times = self.denoiser.times(FixedSolver(kind="heun", steps=steps))[:-1]
        alpha, sigma = self.denoiser.path(times)
        return (sigma / (alpha + sigma)).to(device, state_dtype(device))

    def terms(
        self, batch: "Batch", losses: "LossConfig", distance: Distance
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The distances of velocities and ends of lines at random times."""
        t = u_shaped(batch.latent_noise[:, :, 0], self.config.concentration, self.first)
        near, far = per_sample(1 - t, batch.noise), per_sample(t, batch.noise)
        made = self.end_of(near * batch.samples + far * batch.noise, t, batch.labels)
        made = made.to(torch.float32)
        # The errors of velocity and end differ by the factor t alone: v − v̂ = (x̂₀ − x₀) / t.
        found = distance.parts(batch.samples, made, batch.samples / far, made / far)
        weighted = [part * weight for part, weight in zip(
            found, (torch.ones_like(t), 1 - t, 1 / t), strict=True) if part is not None]
        return {"prediction": torch.stack(weighted).sum(0).mean()}, made


class Line:
    """The ODE of a student's velocity, for the labels of one batch."""

    ends_singular = False

    def __init__(self, student: LineStudent, labels: Tensor | None, precision: Precision) -> None:
        self.student, self.labels, self.precision = student, labels, precision

    def path(self, time: Tensor) -> Path:
        return Path(1 - time, time)

    def velocity(self, state: Tensor, time: Tensor) -> Tensor:
        return (state - self.denoise(state, time)) / time

    def denoise(self, state: Tensor, time: Tensor) -> Tensor:
        t = time.expand(len(state))
        with autocast(self.precision, state.device):
            return self.student.end_of(state, t, self.labels).to(state.dtype)


def u_shaped(normal: Tensor, concentration: float, last: float) -> Tensor:
    """Times (B,) in [LEAST, last − LEAST] of density ∝ exp(a s) + exp(−a s), s from 0 to 1.

    Args:
        normal: (B, 2) standard normal values.
        concentration: a.
        last: the time of noise.
    """
    uniform, side = (0.5 * (1 + torch.erf(value / sqrt(2))) for value in normal.unbind(1))
    s = torch.log1p(uniform * expm1(concentration)) / concentration
    s = torch.where(side < 0.5, s, 1 - s)
    return LEAST + (last - 2 * LEAST) * s
