"""Deterministic ODE solvers over a time grid, which count their function evaluations."""

from collections.abc import Callable, Container, Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdm_core.config import Config
from kdm_core.solvers.adaptive import dopri5
from kdm_core.solvers.base import ODE, Path, Solution
from kdm_core.solvers.fixed import euler, heun, midpoint, rk4
from kdm_core.solvers.grids import GridConfig
from kdm_core.solvers.multistep import DPMSolver

__all__ = ["ODE", "AdaptiveSolver", "FixedSolver", "Path", "Solution", "SolverConfig", "solve"]

Step = Callable[[ODE, Tensor, Tensor, Tensor], Tensor]
"""(ode, state at t, t, t_next) → state at t_next."""


class FixedSolver(Config):
    """A solver that takes `steps` steps over a grid.

    On its last step Heun makes no correction, as in EDM (algorithm 1): NFE = 2 steps − 1. So does
    every solver where the velocity has no value at the end.

    Attributes:
        steps: from pure noise to the sample. A step takes one evaluation of the teacher (`euler`,
            `dpmpp_2m`), two (`heun`, `midpoint`) or four (`rk4`).
        grid: between which noise levels; null for the teacher's own.
    """

    kind: Literal["euler", "heun", "midpoint", "rk4", "dpmpp_2m"]
    steps: int = Field(ge=1)
    grid: GridConfig | None = None


class AdaptiveSolver(Config):
    """Dormand–Prince 5(4), which chooses its own steps between the times of the grid.

    Its error estimate is taken over a batch, so the pairs depend on the batch (a little) and the
    number of evaluations differs from batch to batch.

    Attributes:
        tolerance: of the error of a step, absolute and relative.
        steps: intervals of the grid, at whose ends the state is known. The last is a single step
            where the velocity has no value at the end.
        grid: at which noise levels the intervals begin and end; null for the teacher's own.
    """

    kind: Literal["dopri5"]
    tolerance: float = Field(1e-5, gt=0)
    steps: int = Field(2, ge=2)
    grid: GridConfig | None = None


SolverConfig = Annotated[FixedSolver | AdaptiveSolver, Field(discriminator="kind")]

ONE_STEP: dict[str, Step] = {"euler": euler, "heun": heun, "midpoint": midpoint, "rk4": rk4}


def solve(
    config: SolverConfig,
    ode: ODE,
    state: Tensor,
    times: Tensor,
    keep_states: bool | Container[int] = False,
) -> Solution:
    """Integrate from `times[0]`, where the state is `state`, to `times[-1]`.

    Args:
        config: which solver.
        ode: the teacher's ODE.
        state: (B, *shape).
        times: (n,), on the state's device and in its dtype. Between equal ones nothing is
            evaluated.
        keep_states: also return the states at all times, or at these places among them.
    """
    counted = Counted(ode)
    if isinstance(keep_states, bool):
        keep_states = range(len(times)) if keep_states else ()
    kept = [state] if 0 in keep_states else []
    reached = state
    for place, reached in enumerate(walk(config, counted, state, times), start=1):
        if place in keep_states:
            kept.append(reached)
    return Solution(reached, counted.nfe, torch.stack(kept) if kept else None)


def walk(config: SolverConfig, ode: ODE, state: Tensor, times: Tensor) -> Iterator[Tensor]:
    """The states at `times[1:]`, one after the other; arguments as of `solve`.

    A step between equal times has no length, by which multistep methods would divide.
    """
    distinct, place = torch.unique_consecutive(times, return_inverse=True)
    steps, reached = walk_distinct(config, ode, state, distinct), state
    for moved in place.diff().tolist():
        reached = next(steps) if moved else reached
        yield reached


def walk_distinct(
    config: SolverConfig, ode: ODE, state: Tensor, times: Tensor
) -> Iterator[Tensor]:
    """`walk` where no two times are equal."""
    reached = state
    body = times[:-1] if ode.ends_singular or config.kind == "heun" else times
    if isinstance(config, AdaptiveSolver) and len(body) > 1:
        for reached in dopri5(ode, state, body, config.tolerance):
            yield reached
    elif isinstance(config, FixedSolver):
        step = DPMSolver() if config.kind == "dpmpp_2m" else ONE_STEP[config.kind]
        for t, t_next in zip(body[:-1], body[1:], strict=True):
            reached = step(ode, reached, t, t_next)
            yield reached
    if len(body) < len(times):
        yield euler(ode, reached, times[-2], times[-1])


class Counted:
    """An ODE that counts its evaluations."""

    def __init__(self, ode: ODE) -> None:
        self.ode = ode
        self.path = ode.path
        self.ends_singular = ode.ends_singular
        self.nfe = 0

    def velocity(self, state: Tensor, time: Tensor) -> Tensor:
        self.nfe += 1
        return self.ode.velocity(state, time)

    def denoise(self, state: Tensor, time: Tensor) -> Tensor:
        self.nfe += 1
        return self.ode.denoise(state, time)
