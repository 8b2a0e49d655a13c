"""The one interface of all teachers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Container

import torch
from torch import Tensor, nn

from kdm_core.classes import rearrange
from kdm_core.compute import Precision, autocast, state_dtype
from kdm_core.config import Config
from kdm_core.errors import KDMError, adapted
from kdm_core.samples import SampleSpec
from kdm_core.solvers import Path, Solution, SolverConfig, solve
from kdm_core.solvers.grids import (
    GridConfig,
    TimestepGrid,
    UniformGrid,
    noise_levels,
    require_whole,
    timestep_indices,
)

Evaluate = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A network of a state (B, *shape), times (B,) and labels (B,)."""

# What alpha / sigma may be at the start, above that at the noisiest level: the samples' mean m is
# off by about this times m times their standard deviation.
MOST_SIGNAL = 0.075


class Teacher(nn.Module, ABC):
    """A model whose ODE carries noise to samples.

    It follows a Gaussian path x_t = alpha(t) x₀ + sigma(t) ε in a time of its own choice, from
    `start` (noise) to `end` (samples). A noise level is the ratio sigma / alpha, which is what
    time grids are made of. Denoiser and velocity say the same thing of the path; a kind of teacher
    implements the one it has and derives the other.

    Attributes:
        start, end: times at which the noise begins and ends.
        lowest, highest: positive noise levels between which the model was trained.
        default_grid: the time grid used where none is asked for.
        evaluations: runs of a network that one evaluation of the ODE takes.
        ends_singular: whether the velocity is 0/0 at `end`.
        label_dropout: share of the labels that it was not shown in training, and so whether it
            has learned to do without (0: it has not); None if nobody knows, or it needs no
            training for that.
        named: whether it came with its classes' names; others are given some by their order.
    """

    start: float
    end: float
    lowest: float
    highest: float
    default_grid: GridConfig
    evaluations = 1
    ends_singular = False
    label_dropout: float | None = None
    named = False

    def __init__(self, config: Config, spec: SampleSpec) -> None:
        super().__init__()
        self.config = config
        self.spec = spec

    @abstractmethod
    def path(self, time: Tensor) -> Path:
        """alpha and sigma at times of any shape."""

    @abstractmethod
    def time_at(self, level: Tensor) -> Tensor:
        """The times at which sigma / alpha is `level`, rounded to what the model knows."""

    @abstractmethod
    def denoise(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        """E[x₀ | x_t = x].

        Args:
            x: (B, *shape).
            time: a scalar, or (B,).
            labels: (B,) int64 with −1 for "no label"; None for no labels at all.

        Returns:
            (B, *shape) in the dtype of `x`.
        """

    @abstractmethod
    def velocity(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        """dx/dt of the probability-flow ODE; arguments and result as of `denoise`."""

    def loss(self, samples: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """The training objective, averaged over a batch of clean samples (B, *shape).

        Raises:
            KDMError: teachers of this kind are not trained here.
        """
        raise KDMError(f"a {type(self).__name__} cannot be trained here; import one that is "
                       "trained", field="source")

    def noise_scale(self, time: Tensor) -> Tensor:
        """Standard deviation of the state with which the ODE starts at a time."""
        return self.path(time).sigma

    def network_times(self) -> list[float] | None:
        """What its network is told where samples and where noise are; None without a network."""
        return None

    def network_time(self, time: Tensor) -> Tensor:
        """What its network is told at times of any shape.

        Raises:
            KDMError: it has no network.
        """
        raise KDMError(f"a {type(self).__name__} has no network")

    def denoise_by(
        self, network: Evaluate, x: Tensor, time: Tensor, labels: Tensor | None
    ) -> Tensor:
        """As `denoise`, of another network in place of its own.

        Raises:
            KDMError: it has no network.
        """
        raise KDMError(f"a {type(self).__name__} has no network")

    def activations(self, x: Tensor, time: Tensor, labels: Tensor | None) -> list[Tensor]:
        """What the layers of its network make of a state; arguments as of `denoise`.

        Returns:
            (B, C, H, W) or (B, C) each, as of `kdm_core.networks.base.Network`.

        Raises:
            KDMError: it has no network, or one of which no layers are known.
        """
        raise KDMError(f"a {type(self).__name__} has no network")

    def class_weights(self) -> list[tuple[Tensor, int]]:
        """As of `kdm_core.networks.base.Network`."""
        return []

    def renumber(self, order: list[int], names: list[str]) -> None:
        """Number the classes anew: class i, called names[i], is what class order[i] was.

        Raises:
            KDMError: nobody knows which weights have to do with classes.
        """
        rearrange(self.class_weights(), order)
        self.spec = self.spec.model_copy(update={"label_names": names})

    def levels(self) -> Tensor | None:
        """All noise levels of a model that was trained on discrete ones, ascending."""
        return None

    def times(self, solver: SolverConfig) -> Tensor:
        """The times between which a solver steps, float64 on the CPU.

        They are steps + 1, or fewer where several fall on the same discrete level, which is said;
        no two are equal.

        Raises:
            KDMError: the grid does not fit the teacher.
        """
        grid, steps = solver.grid or self.default_grid, solver.steps
        times = self._times(grid, steps)
        if isinstance(grid, TimestepGrid) and (table := self.levels()) is not None:
            require_whole(grid, steps, len(table))
        if isinstance(grid, TimestepGrid) and self._signal(times[0]) > MOST_SIGNAL:
            adapted(f"solver.grid.spacing: {steps} steps of `{grid.spacing}` spacing would begin "
                    f"at the noise level {float(times[0]):.3g} of {self.highest:.3g}, where there "
                    "is signal that the noise has not; they are spaced as `trailing`, which begins "
                    "at the noisiest level")
            times = self._times(grid.model_copy(update={"spacing": "trailing"}), steps)
        distinct: Tensor = torch.unique_consecutive(times)
        if len(distinct) < len(times):
            adapted(f"solver.steps: of the {steps} steps of the grid {grid.kind}, "
                    f"{len(times) - len(distinct)} begin and end at the same of the teacher's "
                    f"noise levels and are left out; {len(distinct) - 1} steps are taken")
        return distinct

    def _signal(self, time: Tensor) -> float:
        """alpha / sigma at a time, less that of the noisiest level."""
        alpha, sigma = self.path(time)
        return float(alpha / sigma) - 1 / self.highest

    def _times(self, grid: GridConfig, steps: int) -> Tensor:
        """The grid's times (steps + 1,) as they come out, some of them equal."""
        end = torch.tensor([self.end], dtype=torch.float64)
        if isinstance(grid, UniformGrid):
            return torch.linspace(self.start, self.end, steps + 1, dtype=torch.float64)
        if isinstance(grid, TimestepGrid):
            return self._timesteps(grid, steps)
        levels = noise_levels(grid, steps, self.lowest, self.highest)
        return torch.cat([self.time_at(levels), end])

    def _timesteps(self, grid: TimestepGrid, steps: int) -> Tensor:
        table = self.levels()
        if table is None:
            raise KDMError("timesteps is for teachers with discrete noise levels, which this one "
                           "has not; use karras or log_snr (or uniform, for flow matching)",
                           field="solver.grid.kind")
        indices, most = timestep_indices(grid, steps, len(table)), len(table) - 1
        if steps > len(table) or int(indices.max()) > most:
            way_out = (f"take {len(table)} steps at most" if steps > len(table) else
                       f"lower offset to {most - int(indices.max()) + grid.offset}, or take "
                       "fewer steps")
            raise KDMError(f"{steps} steps with offset {grid.offset} leave the teacher's "
                           f"{len(table)} noise levels; {way_out}", field="solver.steps")
        last = table[:1] if grid.end == "lowest" else torch.zeros(1, dtype=torch.float64)
        return self.time_at(torch.cat([table[indices], last]))

    @torch.inference_mode()
    def sample(
        self,
        noise: Tensor,
        labels: Tensor | None,
        solver: SolverConfig,
        precision: Precision = "auto",
        keep_states: bool | Container[int] = False,
        times: Tensor | None = None,
    ) -> Solution:
        """Carry unit-variance noise (B, *shape) to samples (B, *shape), float32.

        `times` are the solver's where nothing else is said. `nfe` counts runs of the network;
        `states` come in the solver's dtype.
        """
        dtype = state_dtype(noise.device)
        times = (self.times(solver) if times is None else times).to(noise.device, dtype)
        state = noise.to(dtype) * self.noise_scale(times[0])
        found = solve(solver, Bound(self, labels, precision), state, times, keep_states)
        return Solution(found.state.to(torch.float32), found.nfe * self.evaluations, found.states)


class Bound:
    """A teacher's ODE for the labels of one batch, in one precision."""

    def __init__(self, teacher: Teacher, labels: Tensor | None, precision: Precision) -> None:
        self.teacher, self.labels, self.precision = teacher, labels, precision
        self.path = teacher.path
        self.ends_singular = teacher.ends_singular

    def velocity(self, state: Tensor, time: Tensor) -> Tensor:
        with autocast(self.precision, state.device):
            return self.teacher.velocity(state, time, self.labels)

    def denoise(self, state: Tensor, time: Tensor) -> Tensor:
        with autocast(self.precision, state.device):
            return self.teacher.denoise(state, time, self.labels)


def per_sample(time: Tensor, x: Tensor) -> Tensor:
    """A scalar time or times (B,), shaped to multiply states like `x`, in its dtype."""
    return time.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
