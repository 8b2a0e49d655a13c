"""One-step methods: each takes the state from one time to the next with a few evaluations."""

from torch import Tensor

from kdm_core.solvers.base import ODE


def euler(ode: ODE, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """First order: x + h v(x, t)."""
    return x + (t_next - t) * ode.velocity(x, t)


def heun(ode: ODE, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """Second order: the mean of the slopes at both ends (EDM, algorithm 1)."""
    slope = ode.velocity(x, t)
    proposal = x + (t_next - t) * slope
    return x + (t_next - t) * (slope + ode.velocity(proposal, t_next)) / 2


def midpoint(ode: ODE, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """Second order: the slope at half the step, x + h v(x + h/2 v(x, t), t + h/2)."""
    half = (t_next - t) / 2
    return x + (t_next - t) * ode.velocity(x + half * ode.velocity(x, t), t + half)


def rk4(ode: ODE, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """Fourth order: the classical Runge–Kutta method."""
    h = t_next - t
    first = ode.velocity(x, t)
    second = ode.velocity(x + h / 2 * first, t + h / 2)
    third = ode.velocity(x + h / 2 * second, t + h / 2)
    fourth = ode.velocity(x + h * third, t_next)
    return x + h / 6 * (first + 2 * second + 2 * third + fourth)
