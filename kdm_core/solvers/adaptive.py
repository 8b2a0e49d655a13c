"""An adaptive Runge–Kutta method, by torchdiffeq."""

from torch import Tensor

from kdm_core.errors import DivergedError, KDMError
from kdm_core.solvers.base import ODE

MAX_STEPS = 10_000  # a hundred times what smooth velocities take at tolerances down to 1e-10
WAY_OUT = "use a larger tolerance, precision fp32, or a solver of fixed steps"


def dopri5(ode: ODE, state: Tensor, times: Tensor, tolerance: float) -> list[Tensor]:
    """Dormand–Prince 5(4): the states at `times[1:]`.

    The last step ends at the last time, so the velocity is never asked for beyond it. States in
    between are interpolated, to the order of the method.

    Args:
        ode: what is integrated.
        state: (B, *shape) at `times[0]`.
        times: (n,), strictly rising or falling, two or more.
        tolerance: of the error of a step, absolute and relative, as a root mean square over the
            batch.

    Raises:
        DivergedError: the velocity is not finite, or no step is short enough, or it takes more
            than MAX_STEPS.
        KDMError: torchdiffeq is not installed.
    """
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise KDMError("dopri5 needs the package torchdiffeq: `pip install torchdiffeq`, or use "
                       "another solver", field="solver.kind") from error

    options = {"dtype": state.dtype, "step_t": times[-1:],
               "first_step": (times[-1] - times[0]).abs() / 100}
    states: Tensor = odeint(Slope(ode), state, times, rtol=tolerance, atol=tolerance,
                            method="dopri5", options=options)
    return list(states[1:])


class Slope:
    """An ODE as torchdiffeq calls it, which fails in words where it cannot go on."""

    def __init__(self, ode: ODE) -> None:
        self.ode = ode
        self.steps = 0

    def __call__(self, time: Tensor, state: Tensor) -> Tensor:
        velocity = self.ode.velocity(state, time)
        if not velocity.isfinite().all():
            raise DivergedError(f"the teacher's velocity is not finite at time {float(time):.6g}: "
                                f"{WAY_OUT}", field="solver")
        return velocity

    def callback_step(self, time: Tensor, state: Tensor, step: Tensor) -> None:
        """Called before every step."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise DivergedError(f"dopri5 is only at time {float(time):.6g} after {MAX_STEPS} "
                                f"steps: {WAY_OUT}", field="solver")
        if time + step == time:
            raise DivergedError(f"dopri5 finds no step short enough at time {float(time):.6g}: "
                                f"{WAY_OUT}", field="solver")
