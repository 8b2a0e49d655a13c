"""What all operators share: the interface of C_η (eq. 6)."""

import torch
from torch import Tensor, nn

from kdm_core.config import Config
from kdm_core.errors import KDMError
from kdm_core.operators.spectrum import SpectralPenalty, SpectrumConfig


class PenalisedConfig(Config):
    """What operators with a spectrum of their own share.

    Attributes:
        spectrum: where training pulls the eigenvalues to; None leaves them alone.
    """

    spectrum: SpectrumConfig | None = None


class KoopmanOperator(nn.Module):
    """A linear map of latents (B, d) → (B, d) that knows its eigenvalues.

    Time is counted in Koopman positions: the way from a noise to its sample takes 1. The control
    term C_μ(y), here `drive`, is what a constant input adds in that time.

    Attributes:
        continuous: whether there is an operator C_t for every t, and not for t = 1 alone.
    """

    continuous = False
    zero: Tensor

    def __init__(self, spectrum: SpectrumConfig | None, dim: int) -> None:
        super().__init__()
        # A scalar that is always on the operator's device, which may have no parameters.
        self.register_buffer("zero", torch.zeros(()), persistent=False)
        self.spectrum = SpectralPenalty(spectrum, dim) if spectrum is not None else None

    def forward(self, z: Tensor, drive: Tensor | None = None) -> Tensor:
        """C z + drive.

        Args:
            z: latents (B, d).
            drive: (B, d), or None for none.
        """
        raise NotImplementedError

    def __call__(self, z: Tensor, drive: Tensor | None = None) -> Tensor:
        return super().__call__(z, drive)  # type: ignore[no-any-return]

    def advance(
        self, z: Tensor, duration: Tensor | float, drive: Tensor | None = None
    ) -> Tensor:
        """C_t z, and what the drive adds in that time; `forward` where the duration is 1.

        Args:
            z: latents (B, d).
            duration: t in [0, 1], one for all or one for each latent (B,).
            drive: (B, d), or None for none.

        Raises:
            KDMError: the operator is not continuous.
        """
        raise KDMError("a dense operator knows the way from noise to sample as a whole and no part "
                       "of it; use continuous or factorised", field="operator.kind")

    def eigenvalues(self) -> Tensor:
        """The spectrum of C, (d,) complex, on the CPU."""
        raise NotImplementedError

    def spectral_values(self) -> Tensor:
        """The eigenvalues that the spectral penalty compares, (d, 2) real and imaginary parts."""
        raise NotImplementedError

    def penalty(self, probes: Tensor | None = None) -> Tensor:
        """A scalar that training adds to its loss, in the precision of the parameters.

        Args:
            probes: independent standard normal vectors (B, d) for operators that are configured
                to estimate their penalty; without, all compute it.
        """
        with torch.autocast(self.zero.device.type, enabled=False):
            return self.constraint(probes) + self.spectral_penalty()

    def constraint(self, probes: Tensor | None = None) -> Tensor:
        """The part of the penalty that keeps the operator what it is; none by default."""
        return self.zero

    def spectral_penalty(self) -> Tensor:
        """The part of the penalty that moves the eigenvalues."""
        if self.spectrum is None:
            return self.zero
        penalty: Tensor = self.spectrum(self.spectral_values())
        return penalty
