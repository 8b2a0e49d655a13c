"""An unconstrained matrix, the operator of the paper's KDM."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdm_core.errors import DivergedError
from kdm_core.operators.base import KoopmanOperator, PenalisedConfig
from kdm_core.operators.spectrum import by_angle


class DenseConfig(PenalisedConfig):
    """An unconstrained matrix.

    Attributes:
        bias: makes it affine, as in the published code; the paper's equations have none.
    """

    kind: Literal["dense"]
    bias: bool = True


class DenseOperator(KoopmanOperator):
    """z → C z (+ b), C started as a random rotation so that every mode passes through at first."""

    def __init__(self, config: DenseConfig, dim: int) -> None:
        super().__init__(config.spectrum, dim)
        self.matrix = nn.Parameter(nn.init.orthogonal_(torch.empty(dim, dim)))
        self.bias = nn.Parameter(torch.zeros(dim)) if config.bias else None

    def forward(self, z: Tensor, drive: Tensor | None = None) -> Tensor:
        pushed = F.linear(z, self.matrix, self.bias)
        return pushed if drive is None else pushed + drive

    @torch.no_grad()
    def eigenvalues(self) -> Tensor:
        """
        Raises:
            DivergedError: the matrix is not finite.
        """
        return solve_eigenvalues(self.matrix.cpu().to(torch.float64))

    def spectral_values(self) -> Tensor:
        """All eigenvalues by angle, from a solver that takes longer than the rest of a step.

        Raises:
            DivergedError: the matrix is not finite.
        """
        # MPS has no solver.
        matrix = self.matrix.cpu() if self.matrix.device.type == "mps" else self.matrix
        values = torch.view_as_real(solve_eigenvalues(matrix))
        return by_angle(values.to(self.matrix.device))


def solve_eigenvalues(matrix: Tensor) -> Tensor:
    """The eigenvalues (d,) of a real matrix (d, d), complex and in the solver's order."""
    # Solvers do not look: some of them crash.
    if not bool(matrix.detach().isfinite().all()):
        raise DivergedError("the operator's matrix is not finite, so it has no eigenvalues; lower "
                            "the learning rate (lr) or set clip")
    values: Tensor = torch.linalg.eigvals(matrix)
    return values
