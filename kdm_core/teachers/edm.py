"""EDM: preconditioning, loss, time grid and ODE of Karras et al. 2022 (arXiv:2206.00364)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from kdm_core.config import Config
from kdm_core.networks import NetworkConfig, build_network
from kdm_core.samples import SampleSpec
from kdm_core.teachers.base import Teacher


class EDMConfig(Config):
    """EDM's constants (table 1): noise levels at sampling (sigma_*, rho) and training (p_*)."""

    kind: Literal["edm"]
    network: NetworkConfig
    sigma_min: float = Field(0.002, gt=0)
    sigma_max: float = Field(80.0, gt=0)
    rho: float = Field(7.0, gt=0)
    p_mean: float = -1.2
    p_std: float = Field(1.2, gt=0)


class EDM(Teacher):
    """A denoiser D(x; sigma); its time is the noise level sigma, from sigma_max down to 0."""

    config: EDMConfig

    def __init__(self, config: EDMConfig, spec: SampleSpec) -> None:
        super().__init__(config, spec)
        self.noise_scale = config.sigma_max
        self.network = build_network(config.network, spec.sample_shape, spec.sample_shape,
                                     timed=True, num_classes=spec.num_classes)

    def denoise(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """D(x; sigma) (eq. 7): the expected clean sample, float32, for sigma of shape (B,)."""
        x, sigma = x.to(torch.float32), sigma.to(torch.float32)
        sd = self.spec.sigma_data
        s = sigma.reshape(-1, *[1] * (x.ndim - 1))
        c_skip = sd**2 / (s**2 + sd**2)
        c_out = s * sd / (s**2 + sd**2).sqrt()
        c_in = 1 / (s**2 + sd**2).sqrt()
        c_noise = sigma.log() / 4
        return c_skip * x + c_out * self.network(c_in * x, c_noise, labels).to(torch.float32)

    def velocity(self, state: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        """dx/dsigma = (x − D(x; sigma)) / sigma (eq. 3 with s = 1, sigma(t) = t)."""
        denoised = self.denoise(state, time.expand(len(state)), labels)
        return (state - denoised.to(state.dtype)) / time

    def time_grid(self, steps: int) -> Tensor:
        """Noise levels after eq. 5, with a final 0."""
        c = self.config
        ramp = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
        low, high = c.sigma_min ** (1 / c.rho), c.sigma_max ** (1 / c.rho)
        return torch.cat([(high + ramp * (low - high)) ** c.rho, torch.zeros(1)])

    def loss(self, samples: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """E λ(sigma) ‖D(y + n; sigma) − y‖², λ = (sigma² + sd²) / (sigma · sd)² (table 1)."""
        c, sd = self.config, self.spec.sigma_data
        normal = torch.randn(len(samples), generator=generator, device=samples.device)
        sigma = (normal * c.p_std + c.p_mean).exp()
        s = sigma.reshape(-1, *[1] * (samples.ndim - 1))
        noise = torch.randn(samples.shape, generator=generator, device=samples.device)
        denoised = self.denoise(samples + noise * s, sigma, labels)
        return ((s**2 + sd**2) / (s * sd) ** 2 * (denoised - samples) ** 2).mean()
