"""KDM-F (appendix C): a matrix given by its eigenvectors and eigenvalues."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdm_core.operators.base import KoopmanOperator, PenalisedConfig
from kdm_core.operators.modes import Complex, charge, matmul, per_latent, power, times


class FactorisedConfig(PenalisedConfig):
    """C = P Λ P⁻¹ with a learned inverse and |λ| < 1.

    Attributes:
        consistency: weight of the penalty that keeps the learned inverse an inverse; 1 in the
            published code, whose penalty has the same scale.
        estimate: in training that penalty is estimated on one random vector a pair instead of
            being computed, without bias, in O(B d²) instead of O(d³) operations.
    """

    kind: Literal["factorised"]
    consistency: float = Field(1.0, ge=0)
    estimate: bool = False


class FactorisedOperator(KoopmanOperator):
    """z → Re(P Λ P_inv z) with λ_j = exp(−exp ν_j) e^{iθ_j}.

    This is appendix C without its 2d × 2d real matrices: padding z with zeros and keeping the
    first half of the result is taking a real vector into the complex plane and the real part back.
    (The appendix prints P_inv Λ P in one place; C = P Λ P⁻¹ and the published code have P first.)

    C_t is Re(P Λ^t P_inv), the power that has the angle tθ. That is a semigroup where P_inv is the
    inverse and P Λ^t P_inv is real, as it is when P and Λ come from a real matrix without negative
    eigenvalues; a part that the projection onto real vectors drops is lost at every stop. The drive
    enters every mode as in `charge`.
    """

    continuous = True

    def __init__(self, config: FactorisedConfig, dim: int) -> None:
        super().__init__(config.spectrum, dim)
        self.consistency, self.estimate = config.consistency, config.estimate
        # A random unitary P = Re + i Im, whose inverse is known: its conjugate transpose.
        basis = torch.linalg.qr(torch.complex(torch.randn(dim, dim), torch.randn(dim, dim)))[0]
        self.p_re, self.p_im = (nn.Parameter(part.clone()) for part in (basis.real, basis.imag))
        self.q_re, self.q_im = (nn.Parameter(part.T.clone()) for part in (basis.real, -basis.imag))
        # Eigenvalues uniform over the unit disc (Orvieto et al. 2023, lemma 3.2).
        self.nu = nn.Parameter(torch.log(-0.5 * torch.log(torch.rand(dim).clamp(1e-6, 1 - 1e-6))))
        self.theta = nn.Parameter(math.pi * (2 * torch.rand(dim) - 1))

    def forward(self, z: Tensor, drive: Tensor | None = None) -> Tensor:
        pushed = self.leave(times(power(self.nu, self.theta, 1.0), self.enter(z)))
        return pushed if drive is None else pushed + drive

    def advance(
        self, z: Tensor, duration: Tensor | float, drive: Tensor | None = None
    ) -> Tensor:
        t = per_latent(duration, self.nu)
        re, im = times(power(self.nu, self.theta, t), self.enter(z))
        if drive is None:
            return self.leave((re, im))
        # drive + Re P (charge − 1) P_inv drive: exact at t = 1 however good the inverse is.
        share_re, share_im = charge(self.nu, self.theta, t)
        in_re, in_im = times((share_re - 1, share_im), self.enter(drive))
        return self.leave((re + in_re, im + in_im)) + drive

    def enter(self, z: Tensor) -> Complex:
        """P_inv z."""
        return F.linear(z, self.q_re), F.linear(z, self.q_im)

    def leave(self, w: Complex) -> Tensor:
        """Re(P w)."""
        return F.linear(w[0], self.p_re) - F.linear(w[1], self.p_im)

    @torch.no_grad()
    def eigenvalues(self) -> Tensor:
        return torch.polar(torch.exp(-torch.exp(self.nu)), self.theta).cpu()

    def spectral_values(self) -> Tensor:
        return torch.stack(power(self.nu, self.theta, 1.0), dim=1)

    def constraint(self, probes: Tensor | None = None) -> Tensor:
        """Mean squared departure of P_inv P and P P_inv from the identity.

        The mean is over the entries of the appendix's real 2d × 2d matrices, in which each real and
        imaginary part stands twice. On probes v it is ‖(P_inv P − 1) v‖² + ‖(P P_inv − 1) v‖²,
        whose expectation over standard normal v is the sum of all squares (Hutchinson 1990).
        """
        p, q = (self.p_re, self.p_im), (self.q_re, self.q_im)
        if not self.consistency:
            return self.zero
        if self.estimate and probes is not None:
            error = probed_error(q, p, probes) + probed_error(p, q, probes)
        else:
            error = identity_error(q, p) + identity_error(p, q)
        return self.consistency * error


def probed_error(a: Complex, b: Complex, probes: Tensor) -> Tensor:
    """An unbiased estimate of `identity_error(a, b)` from standard normal vectors (B, d)."""
    inner = F.linear(probes, b[0]), F.linear(probes, b[1])
    re = F.linear(inner[0], a[0]) - F.linear(inner[1], a[1]) - probes
    im = F.linear(inner[0], a[1]) + F.linear(inner[1], a[0])
    return (re.square().mean() + im.square().mean()) / (2 * len(b[0]))


def identity_error(a: Complex, b: Complex) -> Tensor:
    """Mean square of the entries of the real 2d × 2d form of A B − 1."""
    re, im = matmul(a, b)
    re = re - torch.eye(len(re), dtype=re.dtype, device=re.device)
    return (re.square().mean() + im.square().mean()) / 2
