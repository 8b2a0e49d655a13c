"""The one interface of all teachers."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from kdm_core.compute import Precision, autocast, state_dtype
from kdm_core.config import Config
from kdm_core.samples import SampleSpec
from kdm_core.solvers import Solution, SolverConfig, solve


class Teacher(nn.Module, ABC):
    """A model whose ODE carries noise to samples.

    The ODE runs in a time of the teacher's own choice (sigma for EDM, t for flow matching): from
    `time_grid(steps)[0]`, where the state is `noise_scale` times unit-variance noise, to
    `time_grid(steps)[-1]`, where it is a sample.
    """

    noise_scale: float

    def __init__(self, config: Config, spec: SampleSpec) -> None:
        super().__init__()
        self.config = config
        self.spec = spec

    @abstractmethod
    def time_grid(self, steps: int) -> Tensor:
        """The times (steps + 1,) between which a solver steps, float64 on the CPU."""

    @abstractmethod
    def velocity(self, state: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        """dx/dt of the probability-flow ODE.

        Args:
            state: (B, *shape), in the solver's dtype.
            time: a scalar tensor.
            labels: (B,) int64, or None for an unconditional teacher.

        Returns:
            (B, *shape), in the state's dtype.
        """

    @abstractmethod
    def loss(self, samples: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """The training objective, averaged over a batch of clean samples (B, *shape)."""

    @torch.inference_mode()
    def sample(
        self,
        noise: Tensor,
        labels: Tensor | None,
        solver: SolverConfig,
        precision: Precision = "auto",
    ) -> Solution:
        """Carry unit-variance noise (B, *shape) to samples (B, *shape), float32."""
        dtype = state_dtype(noise.device)
        times = self.time_grid(solver.steps).to(noise.device, dtype)

        def velocity(state: Tensor, time: Tensor) -> Tensor:
            with autocast(precision, noise.device):
                return self.velocity(state, time, labels)

        state, nfe = solve(solver, velocity, noise.to(dtype) * self.noise_scale, times)
        return Solution(state.to(torch.float32), nfe)
