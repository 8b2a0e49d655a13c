"""A one-parameter family of operators, C_t = exp(tA)."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdm_core.operators.base import KoopmanOperator, PenalisedConfig
from kdm_core.operators.modes import Complex, charge, per_latent, power, times


class ContinuousConfig(PenalisedConfig):
    """C_t = exp(tA) for all t, with A in real normal form."""

    kind: Literal["continuous"]


class ContinuousOperator(KoopmanOperator):
    """z → exp(tA) z, A of d/2 blocks [[−a, −ω], [ω, −a]] with a = exp ν > 0 (Lusch et al. 2018).

    Component j of the first half of a latent and component j of the second half are the two of
    block j; if d is odd, the last of the first half is alone with a real eigenvalue e^{−a}. Every
    real matrix is similar to such blocks if its eigenvalues come in complex pairs and decay, and
    the change of basis is left to the encoders and the decoder, which learn it anyway. Two real
    eigenvalues that differ take two blocks.

    Exponentials, eigenvalues and inputs are closed forms, and C_s C_t = C_{s+t} holds exactly, with
    a drive (see `charge`) as without.
    """

    continuous = True

    def __init__(self, config: ContinuousConfig, dim: int) -> None:
        super().__init__(config.spectrum, dim)
        self.dim, self.blocks = dim, dim // 2
        modes = dim - self.blocks
        # Eigenvalues uniform over the unit disc (Orvieto et al. 2023, lemma 3.2), as for KDM-F.
        self.nu = nn.Parameter(torch.log(-0.5 * torch.log(torch.rand(modes).clamp(1e-6, 1 - 1e-6))))
        self.omega = nn.Parameter(math.pi * (2 * torch.rand(self.blocks) - 1))

    def forward(self, z: Tensor, drive: Tensor | None = None) -> Tensor:
        pushed = self.join(times(power(self.nu, self.angles(), 1.0), self.split(z)))
        return pushed if drive is None else pushed + drive

    def advance(
        self, z: Tensor, duration: Tensor | float, drive: Tensor | None = None
    ) -> Tensor:
        t, angles = per_latent(duration, self.nu), self.angles()
        pushed = self.join(times(power(self.nu, angles, t), self.split(z)))
        if drive is None:
            return pushed
        return pushed + self.join(times(charge(self.nu, angles, t), self.split(drive)))

    def angles(self) -> Tensor:
        """θ of all modes (d − d/2,): that of a single real one is 0."""
        return F.pad(self.omega, (0, self.dim % 2))

    def split(self, z: Tensor) -> Complex:
        """The two halves of latents, as one complex number a block."""
        modes = self.dim - self.blocks
        return z[:, :modes], F.pad(z[:, modes:], (0, self.dim % 2))

    def join(self, w: Complex) -> Tensor:
        """The inverse of `split`."""
        return torch.cat([w[0], w[1][:, : self.blocks]], dim=1)

    @torch.no_grad()
    def eigenvalues(self) -> Tensor:
        return torch.view_as_complex(self.spectral_values().contiguous()).cpu()

    def spectral_values(self) -> Tensor:
        """One of each pair for every block, then the other ones: they move together."""
        re, im = power(self.nu, self.angles(), 1.0)
        upper = torch.stack([re, im], dim=1)
        lower = torch.stack([re, -im], dim=1)[: self.blocks]
        return torch.cat([upper, lower])
