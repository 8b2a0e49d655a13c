"""Conditional-OT flow matching (Lipman et al. 2023, arXiv:2210.02747, section 4.1)."""

from typing import Literal

import torch
from torch import Tensor

from kdm_core.config import Config
from kdm_core.networks import NetworkConfig, build_network
from kdm_core.samples import SampleSpec
from kdm_core.teachers.base import Teacher


class FlowMatchingConfig(Config):
    """A velocity field on straight paths from noise to samples (sigma_min = 0)."""

    kind: Literal["flow_matching"]
    network: NetworkConfig


class FlowMatching(Teacher):
    """A velocity field v(x, t); its time runs from 0 (noise) to 1 (samples)."""

    config: FlowMatchingConfig
    noise_scale = 1.0

    def __init__(self, config: FlowMatchingConfig, spec: SampleSpec) -> None:
        super().__init__(config, spec)
        self.network = build_network(config.network, spec.sample_shape, spec.sample_shape,
                                     timed=True, num_classes=spec.num_classes)

    def field(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """v(x, t), float32, for t of shape (B,); the network sees a state of unit variance."""
        x, t = x.to(torch.float32), t.to(torch.float32)
        time = t.reshape(-1, *[1] * (x.ndim - 1))
        scale = ((1 - time) ** 2 + (time * self.spec.sigma_data) ** 2).sqrt()
        return self.network(x / scale, t, labels).to(torch.float32)

    def velocity(self, state: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        return self.field(state, time.expand(len(state)), labels).to(state.dtype)

    def time_grid(self, steps: int) -> Tensor:
        """Uniform from 0 to 1."""
        return torch.linspace(0, 1, steps + 1, dtype=torch.float64)

    def loss(self, samples: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """E ‖v((1 − t) x₀ + t x₁, t) − (x₁ − x₀)‖², x₀ noise, x₁ a sample, t uniform (eq. 23)."""
        t = torch.rand(len(samples), generator=generator, device=samples.device)
        noise = torch.randn(samples.shape, generator=generator, device=samples.device)
        time = t.reshape(-1, *[1] * (samples.ndim - 1))
        x = (1 - time) * noise + time * samples
        return ((self.field(x, t, labels) - (samples - noise)) ** 2).mean()
