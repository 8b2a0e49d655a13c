"""Deterministic ODE solvers over a fixed time grid, which count their function evaluations.

All take the state at `times[0]` and return the state at `times[-1]`.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

from pydantic import Field
from torch import Tensor

from kdm_core.config import Config

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(state (B, …), scalar time) → time derivative of the state, of the same shape."""


class SolverConfig(Config):
    """Which solver, and how many steps it takes over the teacher's time grid."""

    kind: Literal["euler", "heun", "midpoint"]
    steps: int = Field(ge=1)


class Solution(NamedTuple):
    """The final state and the number of evaluations of the velocity it took."""

    state: Tensor
    nfe: int


def euler(velocity: Velocity, state: Tensor, times: Tensor) -> Solution:
    """First order: x ← x + h v(x, t)."""
    for t, t_next in zip(times[:-1], times[1:], strict=True):
        state = state + (t_next - t) * velocity(state, t)
    return Solution(state, len(times) - 1)


def heun(velocity: Velocity, state: Tensor, times: Tensor) -> Solution:
    """Second order, with no correction on the last step (EDM, algorithm 1): NFE = 2 steps − 1.

    EDM's velocity is singular at the end of its grid, sigma = 0, where it must not be evaluated.
    """
    for step, (t, t_next) in enumerate(zip(times[:-1], times[1:], strict=True)):
        slope = velocity(state, t)
        proposal = state + (t_next - t) * slope
        if step < len(times) - 2:
            proposal = state + (t_next - t) * (slope + velocity(proposal, t_next)) / 2
        state = proposal
    return Solution(state, 2 * (len(times) - 1) - 1)


def midpoint(velocity: Velocity, state: Tensor, times: Tensor) -> Solution:
    """Second order: x ← x + h v(x + h/2 v(x, t), t + h/2); never evaluates the end of the grid."""
    for t, t_next in zip(times[:-1], times[1:], strict=True):
        half = (t_next - t) / 2
        state = state + (t_next - t) * velocity(state + half * velocity(state, t), t + half)
    return Solution(state, 2 * (len(times) - 1))


SOLVERS: dict[str, Callable[[Velocity, Tensor, Tensor], Solution]] = {
    "euler": euler,
    "heun": heun,
    "midpoint": midpoint,
}


def solve(config: SolverConfig, velocity: Velocity, state: Tensor, times: Tensor) -> Solution:
    """Integrate with the solver that the configuration names."""
    return SOLVERS[config.kind](velocity, state, times)
