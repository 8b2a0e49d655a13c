"""`mean_flow`: rectified MeanFlow (arXiv:2511.23342).

The average velocities of MeanFlow (arXiv:2505.13447), learned on a teacher's pairs: u(x_t, r, t)
is the mean of the velocity between the times r and t on a student's own way, so that one evaluation
leads from x_t to x_r = x_t − (t − r) u. It starts at the teacher's weights, as a rectified flow
does, and as the velocity, u(x, t, t) = v: what its network is told of t − r begins at zero. So the
published fit of a new embedding of time is not needed: t is told as the teacher tells it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdm_core.errors import KDMError
from kdm_core.labels import Labels
from kdm_core.losses.distances import Distance, squared
from kdm_core.networks.base import ConditionEmbedding
from kdm_core.samples import SampleSpec
from kdm_core.students.denoising import DenoisingConfig
from kdm_core.students.rectified_flow import LEAST, LineStudent, u_shaped
from kdm_core.teachers.base import per_sample

if TYPE_CHECKING:
    from kdm_core.pairs.reading.whole import Pairs
    from kdm_core.students.objective import Batch, LossConfig

STEP = 1e-3
"""h of the finite difference: its error, of the order of h², and that of rounding in float32, 1e-7
of the values over h, are about as large."""
GAP = (-0.8, 1.0)
"""Mean and deviation of the normal value whose sigmoid is t − r."""
EASED = 1e-2
"""What is added to a sample's error in the adaptive weight."""

Flow = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x, r, t) → u, of (B, *shape), (B,) and (B,)."""


class MeanFlowConfig(DenoisingConfig):
    """The average velocity of the way from noise to sample.

    Attributes:
        concentration: of the times t, as of `rectified_flow`.
        equal: share of the pairs of a batch whose r is t, so that u stays the velocity there.
        adaptive: power p of the weight 1 / (error + 0.01)^p of a sample; 0 weighs all alike.
        derivative: du/dt by finite differences, or by forward-mode differentiation (`jvp`), which
            takes kernels that have it.
        truncate: share of the pairs, those whose sample is furthest from their noise, that are
            left out. The distance beyond which they are is that of the validation pairs.
    """

    kind: Literal["mean_flow"] = "mean_flow"
    concentration: float = Field(4.0, gt=0)
    equal: float = Field(0.75, ge=0, le=1)
    adaptive: float = Field(0.5, ge=0)
    derivative: Literal["difference", "jvp"] = "difference"
    truncate: float = Field(0.1, ge=0, lt=1)
    unused: ClassVar = ("reconstruction", "latent", "latent_noise", "trajectory", "endpoint",
                        "adversarial", "drifting")

    def describe(self) -> str:
        return "average velocity between noise and sample"

    def check(self, losses: "LossConfig") -> None:
        super().check(losses)
        if losses.distance.kind != "mse":
            raise ValueError("losses.distance.kind: an average velocity is learned as a mean, "
                             "which the squared error alone gives; use mse")

    def build(self, spec: SampleSpec) -> "MeanFlow":
        return MeanFlow(self, spec)


class MeanFlow(LineStudent):
    """See `MeanFlowConfig`, which must be complete.

    Attributes:
        gap: embeds t − r; what it gives is added to what the network's blocks are told, and is zero
            at first.
        farthest: ‖x₀ − z‖ per root of the number of values, above which pairs are left out.
    """

    config: MeanFlowConfig
    farthest: Tensor
    latent = 2  # four normal values of a pair: two for t, one for r, one for whether r is t

    def __init__(self, config: MeanFlowConfig, spec: SampleSpec) -> None:
        super().__init__(config, spec)
        self.gap = GapEmbedding(condition_width(self.network, spec))
        self.register_buffer("farthest", torch.tensor(float("inf")))

    def forward(self, noise: Tensor, labels: Labels | None = None) -> Tensor:
        given = self.heeded(labels, noise)
        gap = torch.full(noise.shape[:1], self.first, device=noise.device)
        made = self.lead(noise * self.start_scale, self.start, gap, given)
        return made.to(torch.float32)

    def jump(self, x: Tensor, r: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """x_r = x_t − (t − r) u(x_t, r, t), (B, *shape), of states (B, *shape) and times (B,)."""
        return x - per_sample(t - r, x) * self.mean(x, r, t, labels)

    def mean(self, x: Tensor, r: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """u(x_t, r, t), (B, *shape)."""
        end = self.lead(*self.teachers(x, t), t - r, labels)
        return (x - end) / per_sample(t, x)

    def lead(self, state: Tensor, time: Tensor, gap: Tensor, labels: Tensor | None) -> Tensor:
        """x_t − t u(x_t, t − gap, t), (B, *shape), which for r = 0 is the sample.

        Args:
            state, time: x_t as the teacher has it, (B, *shape), and its time.
            gap: t − r (B,).
        """

        def told(inner: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
            network = self.network
            condition = moved(network.condition(inner, time, labels), self.gap(gap))
            return network.decode(network.encode(inner, condition), condition)

        return self.denoiser.denoise_by(told, state, time, labels)

    def refine(self, noise: Tensor, labels: Labels | None, steps: int) -> Tensor:
        """In steps that are even in t."""
        self.check_steps(steps)
        given = self.heeded(labels, noise)
        state = self.entry * noise
        one = torch.full((len(noise),), self.first / steps, device=noise.device)
        for left in range(steps, 0, -1):
            state = self.jump(state, (left - 1) * one, left * one, given).to(torch.float32)
        return state

    def prepare(self, validation: "Pairs") -> None:
        if self.config.truncate:
            apart = squared(validation.samples, validation.noise).sqrt()
            self.farthest.copy_(torch.quantile(apart.double(), 1 - self.config.truncate))

    def terms(
        self, batch: "Batch", losses: "LossConfig", distance: Distance
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The adaptively weighted squared error to the target, of the pairs that are not left out.
        """
        normal, config = batch.latent_noise, self.config
        t = u_shaped(normal[:, :, 0], config.concentration, self.first)
        apart = torch.sigmoid(GAP[0] + GAP[1] * normal[:, 0, 1])
        equal = 0.5 * (1 + torch.erf(normal[:, 1, 1] / 2**0.5)) < config.equal
        r = torch.where(equal, t, (t - apart).clamp(min=0.0))
        velocity = batch.noise - batch.samples
        x = batch.samples + per_sample(t, velocity) * velocity

        def flow(x: Tensor, r: Tensor, t: Tensor) -> Tensor:
            return self.mean(x, r, t, batch.labels).to(torch.float32)

        with without_dropout(self.network):
            target = mean_target(flow, x, velocity, r, t, config.derivative)
        made = flow(x, r, t)
        error = squared(target, made)
        weight = (error.detach() + EASED) ** -config.adaptive
        kept = (squared(batch.samples, batch.noise).sqrt() <= self.farthest).to(error)
        # Over all, so that the others do not count more where some of a batch are left out.
        return {"prediction": (kept * weight * error).mean()}, x - per_sample(t, x) * made


class GapEmbedding(nn.Module):
    """t − r (B,) as what is added to a condition (B, width): zero for t = r, and at first for all.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = ConditionEmbedding(width, timed=True, num_classes=0)
        self.out = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, gap: Tensor) -> Tensor:
        found: Tensor = self.out(self.embed(gap, None) - self.embed(torch.zeros_like(gap), None))
        return found


def mean_target(
    flow: Flow, x: Tensor, velocity: Tensor, r: Tensor, t: Tensor,
    derivative: Literal["difference", "jvp"] = "difference",
) -> Tensor:
    """v − (t − r) du/dt, without gradient, in float32: what u(x_t, r, t) has to be.

    du/dt goes along the line: x moves with `velocity`, r stays.

    Args:
        flow: u.
        x, velocity: (B, *shape).
        r, t: (B,), 0 ≤ r ≤ t.

    Raises:
        KDMError: a kernel has no forward-mode derivative.
    """
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        if derivative == "jvp":
            try:
                change: Tensor = torch.func.jvp(flow, (x, r, t), (
                    velocity, torch.zeros_like(r), torch.ones_like(t)))[1]
            except RuntimeError as error:  # of torch, where a kernel has no such derivative
                raise KDMError(f"this network cannot be differentiated so ({one_line(error)}); use "
                               "difference", field="derivative") from error
        else:
            before = torch.minimum(torch.full_like(t, STEP), (t - LEAST).clamp(min=0) / 2)
            after = torch.full_like(t, STEP)
            later, sooner = (flow((x.double() + per_sample(h.double(), x.double()) * velocity)
                                  .to(x.dtype), r, t + h) for h in (after, -before))
            change = ((later.double() - sooner.double())
                      / per_sample((after + before).double(), later.double())).to(x.dtype)
        return velocity - per_sample(t - r, x) * change


@contextmanager
def without_dropout(network: nn.Module) -> Iterator[None]:
    """A difference of two evaluations is one of their times alone."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def one_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def moved(condition: Any, shift: Tensor) -> Any:
    """A network's condition with a vector (B, width) added."""
    if isinstance(condition, tuple):  # of mlp: rows, and which of them each sample has
        rows, places = condition
        return (rows if places is None else places @ rows) + shift, None
    return condition + shift


def condition_width(network: nn.Module, spec: SampleSpec) -> int:
    """How many values a network's blocks are told.

    Raises:
        KDMError: they are told nothing, or it cannot be cut.
    """
    weight = next(network.parameters())
    x, time = weight.new_zeros(1, *spec.sample_shape), weight.new_zeros(1)
    with torch.no_grad():
        condition = network.condition(x, time, None)  # type: ignore[operator]
    found = condition[0] if isinstance(condition, tuple) else condition
    if found is None:
        raise KDMError("this network is told no time, and an average velocity has two; use one "
                       "that is", field="denoiser.network")
    return int(found.shape[-1])
