"""Linear operators that carry the latent of a noise to the latent of its sample (eq. 6)."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdm_core.config import Config


class DenseConfig(Config):
    """An unconstrained matrix; `bias` makes it affine, as in the published code."""

    kind: Literal["dense"]
    bias: bool = True


class FactorisedConfig(Config):
    """KDM-F (appendix C): C = P Λ P⁻¹ with a learned inverse and |λ| < 1.

    Attributes:
        consistency: weight of the penalty that keeps the learned inverse an inverse.
    """

    kind: Literal["factorised"]
    consistency: float = Field(1.0, ge=0)


OperatorConfig = Annotated[DenseConfig | FactorisedConfig, Field(discriminator="kind")]


class KoopmanOperator(nn.Module):
    """A linear map of latents (B, d) → (B, d) that knows its eigenvalues."""

    def eigenvalues(self) -> Tensor:
        """The spectrum (d,), complex."""
        raise NotImplementedError

    def penalty(self) -> Tensor:
        """A scalar that training adds to its loss; zero for operators without constraints."""
        raise NotImplementedError


class DenseOperator(KoopmanOperator):
    """z → C z (+ b), C started as a random rotation so that every mode passes through at first."""

    def __init__(self, config: DenseConfig, dim: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(nn.init.orthogonal_(torch.empty(dim, dim)))
        self.bias = nn.Parameter(torch.zeros(dim)) if config.bias else None

    def forward(self, z: Tensor) -> Tensor:
        return F.linear(z, self.matrix, self.bias)

    @torch.no_grad()
    def eigenvalues(self) -> Tensor:
        values: Tensor = torch.linalg.eigvals(self.matrix.cpu().to(torch.float64))
        return values

    def penalty(self) -> Tensor:
        return self.matrix.new_zeros(())


class FactorisedOperator(KoopmanOperator):
    """z → Re(P Λ P_inv z) with λ_j = exp(−exp ν_j) e^{iθ_j}.

    This is appendix C without its 2d × 2d real matrices: padding z with zeros and keeping the
    first half of the result is taking a real vector into the complex plane and the real part back.
    """

    def __init__(self, config: FactorisedConfig, dim: int) -> None:
        super().__init__()
        self.consistency = config.consistency
        # A random unitary P = Re + i Im, whose inverse is known: its conjugate transpose.
        basis = torch.linalg.qr(torch.complex(torch.randn(dim, dim), torch.randn(dim, dim)))[0]
        self.p_re, self.p_im = (nn.Parameter(part.clone()) for part in (basis.real, basis.imag))
        self.q_re, self.q_im = (nn.Parameter(part.T.clone()) for part in (basis.real, -basis.imag))
        # Eigenvalues uniform over the unit disc (Orvieto et al. 2023, lemma 3.2).
        self.nu = nn.Parameter(torch.log(-0.5 * torch.log(torch.rand(dim).clamp(1e-6, 1 - 1e-6))))
        self.theta = nn.Parameter(2 * math.pi * torch.rand(dim))

    def forward(self, z: Tensor) -> Tensor:
        w_re, w_im = F.linear(z, self.q_re), F.linear(z, self.q_im)
        modulus = torch.exp(-torch.exp(self.nu))
        l_re, l_im = modulus * self.theta.cos(), modulus * self.theta.sin()
        u_re, u_im = l_re * w_re - l_im * w_im, l_re * w_im + l_im * w_re
        return F.linear(u_re, self.p_re) - F.linear(u_im, self.p_im)

    @torch.no_grad()
    def eigenvalues(self) -> Tensor:
        return torch.polar(torch.exp(-torch.exp(self.nu)), self.theta).cpu()

    def penalty(self) -> Tensor:
        """Mean squared departure of P_inv P and P P_inv from the identity (complex entries)."""
        p, q = torch.complex(self.p_re, self.p_im), torch.complex(self.q_re, self.q_im)
        identity = torch.eye(len(p), device=p.device)
        error = (q @ p - identity).abs().square() + (p @ q - identity).abs().square()
        return self.consistency * error.mean()


def build_operator(config: OperatorConfig, dim: int) -> KoopmanOperator:
    """The operator that a configuration describes, on latents of `dim` numbers."""
    if isinstance(config, DenseConfig):
        return DenseOperator(config, dim)
    return FactorisedOperator(config, dim)
