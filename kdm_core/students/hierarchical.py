"""`hierarchical`: a denoiser whose levels evolve linearly (arXiv:2510.12220).

The network is cut in two. The first half sees a state and its time; every level of what it gives,
skips and bottleneck, is taken to the end by exp(τA) with 2×2 blocks of decay and rotation; the
second half makes the sample of that. With A = 0 and both halves told the same time it is the
teacher's denoiser. τ is the way that is left, in positions: 1 from noise to sample.
"""

from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from kdm_core.errors import KDMError
from kdm_core.labels import Labels
from kdm_core.losses.distances import Distance
from kdm_core.operators.levels import LevelsConfig, LevelsOperator
from kdm_core.samples import SampleSpec
from kdm_core.students.denoising import DenoisingConfig, DenoisingStudent
from kdm_core.teachers.base import per_sample

if TYPE_CHECKING:
    from kdm_core.students.objective import Batch, LossConfig
    from kdm_core.students.trajectory import States

Bands = Literal["decay", "rotation"]


class HierarchicalConfig(DenoisingConfig):
    """A denoiser with linear evolution between its halves.

    Attributes:
        operator: how the levels evolve.
        decoder_time: the time that the second half is told: the first half's (`input`), for which
            a teacher's weights are made, or that of the state to which it leads (`target`, the
            paper's).
    """

    kind: Literal["hierarchical"] = "hierarchical"
    operator: LevelsConfig = LevelsConfig()
    decoder_time: Literal["input", "target"] = "input"
    unused: ClassVar = ("reconstruction", "latent", "latent_noise")

    def describe(self) -> str:
        if self.operator.kind == "none":
            return "the levels of a network without an operator"
        return "Koopman operators on all levels of a network"

    def build(self, spec: SampleSpec) -> "Hierarchical":
        return Hierarchical(self, spec)

    def check(self, losses: "LossConfig") -> None:
        super().check(losses)
        if losses.trajectory and self.decoder_time == "input" and self.operator.kind == "none":
            raise ValueError("losses.trajectory: nothing tells the decoder to which state it "
                             "leads; set model.operator.kind: skips, or model.decoder_time: "
                             "target")


class Band(NamedTuple):
    """A share of the modes of every level, in the order of their decay or rotation.

    Attributes:
        by: `decay` orders by α, those that shrink most first; `rotation` by |β|, the slowest first.
        first, last: shares in [0, 1], between which the band lies.
    """

    by: Bands
    first: float
    last: float


class Hierarchical(DenoisingStudent):
    """See `HierarchicalConfig`."""

    config: HierarchicalConfig
    has_latents = True

    def __init__(self, config: HierarchicalConfig, spec: SampleSpec) -> None:
        """
        Raises:
            KDMError: as of its base; or the network cannot be cut.
        """
        super().__init__(config, spec)
        self.operator = LevelsOperator(config.operator, self.level_shapes())
        self.has_states = self.has_modes = bool(self.operator.modes)

    @torch.no_grad()
    def level_shapes(self) -> list[torch.Size]:
        """The shapes of the network's levels, without the batch."""
        network, like = self.network.eval(), next(self.network.parameters())
        x = like.new_zeros(1, *self.spec.sample_shape)
        time, labels = like.new_ones(1), like.new_zeros(1, dtype=torch.int64)
        shapes = [level.shape[1:] for level in network.encode(
            x, network.condition(x, time, self.spec.told(labels)))]
        network.train()
        return shapes

    def eigenvalues(self) -> Tensor | None:
        return self.operator.eigenvalues() if self.has_modes else None

    # The two halves

    def denoise(
        self, x: Tensor, time: Tensor, labels: Tensor | None, position: Tensor | float
    ) -> Tensor:
        return self.carry(x, time, labels, position)

    def carry(
        self, x: Tensor, time: Tensor, labels: Tensor | None, position: Tensor | float,
        target: Tensor | None = None, levels: list[Tensor] | None = None,
    ) -> Tensor:
        """What the second half makes of a state, evolved to another position.

        Args:
            x, time, labels, position: as of `denoise`.
            target: positions (B,); None for samples.
            levels: before they evolve; those of the state if None.
        """

        def halves(given: Tensor, told: Tensor, labels: Tensor | None) -> Tensor:
            network = self.network
            condition = network.condition(given, told, labels)
            first = network.encode(given, condition) if levels is None else levels
            evolved = self.operator(first, position if target is None else position - target)
            if self.config.decoder_time == "target":
                condition = network.condition(given, self.told_at(target, given), labels)
            return network.decode(evolved, condition)

        return self.denoiser.denoise_by(halves, x, time, labels)

    def levels(self, noise: Tensor, labels: Tensor | None) -> list[Tensor]:
        """The levels (B, C, …) of noise (B, *shape), before they evolve."""
        found: list[Tensor] = []

        def first_half(given: Tensor, told: Tensor, labels: Tensor | None) -> Tensor:
            condition = self.network.condition(given, told, labels)
            found.extend(self.network.encode(given, condition))
            return given

        self.denoiser.denoise_by(first_half, noise * self.start_scale, self.start, labels)
        return found

    def of_levels(
        self, levels: list[Tensor], noise: Tensor, labels: Tensor | None
    ) -> Tensor:
        """Samples (B, *shape), float32, of levels, and of noise where those do not count: in what
        the preconditioning adds to the network's output, which is linear in the noise."""
        return self.carry(noise * self.start_scale, self.start, labels, 1.0, levels=levels).to(
            torch.float32)

    def told_at(self, position: Tensor | None, like: Tensor) -> Tensor:
        """What the network is told of the time at positions (B,), or where samples are (None)."""
        end = torch.full((like.shape[0],), self.end_told, device=like.device)
        if position is None:
            return end
        inner = self.denoiser.network_time(self.time_at(position.clamp(min=1e-4)))
        return torch.where(position > 0, inner.to(end), end)

    # What it minimises

    def terms(
        self, batch: "Batch", losses: "LossConfig", distance: Distance
    ) -> tuple[dict[str, Tensor], Tensor]:
        """As of its base, and with `trajectory` d(x_v, what x_u leads to at v), u > v."""
        terms, predicted = super().terms(batch, losses, distance)
        if losses.trajectory:
            assert batch.states is not None
            terms["trajectory"] = self.trajectory(batch.states, batch.labels, distance)
        return terms, predicted

    def trajectory(self, states: "States", labels: Tensor | None, distance: Distance) -> Tensor:
        """The distance of a state to what another one leads to, in the range of samples."""
        reached = self.reach(states.start, states.start_position, states.end_position, labels)
        scale = self.spec.sigma_data
        (term,) = distance(scale * states.end, [scale * reached])
        return term

    def reach(
        self, state: Tensor, position: Tensor, target: Tensor, labels: Tensor | None,
        levels: list[Tensor] | None = None,
    ) -> Tensor:
        """The states at positions v (B,) to which states (B, *shape) at positions u (B,) lead.

        Of unit variance, as those are: x_v = r x_u + (cos(πv/2) − r cos(πu/2)) g with
        r = sin(πv/2) / sin(πu/2), a step of DDIM (arXiv:2010.02502, eq. 12) through what the second
        half makes for v, g sigma_data. It is x_u itself for v = u, and g for v = 0.
        """
        time = self.time_at(position)
        x = state * per_sample(self.scale(time), state)
        g = self.carry(x, time, labels, position, target, levels).to(torch.float32)
        g = g / self.spec.sigma_data
        start, end = (per_sample(place, state) * (torch.pi / 2) for place in (position, target))
        ratio = end.sin() / start.sin()
        return ratio * state + (end.cos() - ratio * start.cos()) * g

    # What its modes are good for

    @torch.inference_mode()
    def states(
        self, noise: Tensor, positions: list[float], labels: Labels | None = None
    ) -> Tensor:
        given = self.known(labels, noise)
        self.require_modes("states")
        start, levels = torch.ones(len(noise), device=noise.device), self.levels(noise, given)
        return torch.stack([self.reach(noise, start, position * start, given, levels)
                            for position in positions], dim=1)

    @torch.inference_mode()
    def edit(
        self, noise: Tensor, band: Band, labels: Labels | None = None, other: Tensor | None = None
    ) -> Tensor:
        """Samples (B, *shape) of noise (B, *shape) whose modes in a band are another noise's.

        Args:
            band: of every level.
            other: the noise (B, *shape) whose modes take their place; None drops them.

        Raises:
            KDMError: its levels have no modes, or there is no such band.
        """
        self.require_modes("edit")
        if band.by not in ("decay", "rotation") or not 0 <= band.first < band.last <= 1:
            raise KDMError(f"band: {tuple(band)} is none; give decay or rotation, and two shares "
                           "with 0 ≤ first < last ≤ 1")
        given = self.known(labels, noise)
        own = self.levels(noise, given)
        others = [torch.zeros_like(level) for level in own] if other is None else self.levels(
            other, given)
        exchanged = [torch.where(mask, theirs, level) for mask, theirs, level in zip(
            self.masks(band), others, own, strict=True)]
        return self.of_levels(exchanged, noise, given)

    def masks(self, band: Band) -> list[Tensor]:
        """Which values (1, C, …) of each level are of the modes of a band."""
        values = self.operator.decay if band.by == "decay" else self.operator.rotation.abs()
        masks = []
        for number, group in enumerate(self.operator.groups):
            own = torch.split(values, self.operator.sizes)[group]
            rank = own.argsort(stable=True).argsort(stable=True).to(torch.float64) / len(own)
            inside = ((rank >= band.first) & (rank < band.last)).reshape(
                1, *self.operator.modes[group]).movedim(-1, 1)
            whole = torch.zeros((1, *self.operator.shapes[number]), dtype=torch.bool,
                                device=own.device)
            half = inside.shape[1]
            whole[:, :half], whole[:, half : 2 * half] = inside, inside
            masks.append(whole)
        return masks

    def between(
        self, start: Tensor, end: Tensor, weights: Tensor, labels: Tensor | None
    ) -> Tensor:
        levels = [torch.lerp(own, other, per_sample(weights, own)) for own, other in zip(
            self.levels(start, labels), self.levels(end, labels), strict=True)]
        return self.of_levels(levels, torch.lerp(start, end, per_sample(weights, start)), labels)

    def require_modes(self, what: str) -> None:
        if not self.has_modes:
            raise KDMError(f"{what}: this student's operator is none, so that it has no modes; "
                           "train one with model.operator.kind: skips")
