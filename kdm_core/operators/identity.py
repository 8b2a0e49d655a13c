"""No operator: what remains of the method without it is plain knowledge distillation."""

from typing import Literal

import torch
from torch import Tensor

from kdm_core.config import Config
from kdm_core.operators.base import KoopmanOperator


class IdentityConfig(Config):
    """z → z: the decoder has to do all the work. A baseline."""

    kind: Literal["identity"]


class IdentityOperator(KoopmanOperator):
    """z → z (+ drive), at all times."""

    continuous = True

    def __init__(self, config: IdentityConfig, dim: int) -> None:
        super().__init__(None, dim)
        self.dim = dim

    def forward(self, z: Tensor, drive: Tensor | None = None) -> Tensor:
        return z if drive is None else z + drive

    def advance(
        self, z: Tensor, duration: Tensor | float, drive: Tensor | None = None
    ) -> Tensor:
        if drive is None:
            return z
        share = torch.as_tensor(duration, dtype=drive.dtype, device=drive.device)
        return z + share.reshape(-1, 1) * drive

    def eigenvalues(self) -> Tensor:
        return torch.ones(self.dim, dtype=torch.complex64)
