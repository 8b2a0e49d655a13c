"""DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2)."""

import torch
from torch import Tensor

from kdm_core.solvers.base import ODE


class DPMSolver:
    """Second order with one evaluation a step: the denoiser is extrapolated in log SNR.

    x' = (sigma'/sigma) x − alpha' (e^(−h) − 1) D, where h is the step in λ = log(alpha/sigma). One
    object serves one solution: it remembers the evaluation of the step before. Where λ is infinite
    (pure noise at the start, none at the end) there is nothing to extrapolate along, and the step
    is of first order.
    """

    def __init__(self) -> None:
        self.before: tuple[Tensor, Tensor] | None = None

    def __call__(self, ode: ODE, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        here, there = ode.path(t), ode.path(t_next)
        h = (there.alpha.log() - there.sigma.log()) - (here.alpha.log() - here.sigma.log())
        denoised = extrapolated = ode.denoise(x, t)
        if self.before is not None:
            denoised_before, h_before = self.before
            # 1 / 2r; 0 behind a step from pure noise, whose h is infinite.
            weight = torch.where(there.sigma > 0, h / (2 * h_before), 0)
            extrapolated = denoised + weight * (denoised - denoised_before)
        self.before = denoised, h
        return there.sigma / here.sigma * x - there.alpha * torch.expm1(-h) * extrapolated
