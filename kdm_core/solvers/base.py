"""What a solver is given and what it returns."""

from typing import NamedTuple, Protocol

from torch import Tensor


class Path(NamedTuple):
    """x_t = alpha x₀ + sigma ε: the Gaussian path that a teacher's ODE follows, at one time."""

    alpha: Tensor
    sigma: Tensor


class ODE(Protocol):
    """The probability-flow ODE of a teacher, for one batch with its labels.

    `time` is a scalar tensor, in the teacher's own unit; states are (B, *shape).
    """

    ends_singular: bool
    """Whether the velocity is 0/0 where the noise ends, so that the last step needs a limit."""

    def velocity(self, state: Tensor, time: Tensor) -> Tensor:
        """dx/dt, in the state's dtype."""

    def denoise(self, state: Tensor, time: Tensor) -> Tensor:
        """E[x₀ | x_t], in the state's dtype."""

    def path(self, time: Tensor) -> Path:
        """alpha and sigma at a time."""


class Solution(NamedTuple):
    """Where a solver ended.

    Attributes:
        state: (B, *shape) at the last time.
        nfe: evaluations of the velocity or the denoiser that it took.
        states: (times, B, *shape), the state at every time of the grid, if asked for.
    """

    state: Tensor
    nfe: int
    states: Tensor | None = None
