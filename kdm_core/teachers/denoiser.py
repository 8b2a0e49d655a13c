"""Denoisers D(x; sigma), in the framework of EDM (Karras et al. 2022, arXiv:2206.00364)."""

from math import inf
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdm_core.config import Config
from kdm_core.networks import AnyNetworkConfig, build_network
from kdm_core.samples import SampleSpec
from kdm_core.solvers import Path
from kdm_core.solvers.grids import KarrasGrid, SigmaGrid, TimestepGrid
from kdm_core.teachers.base import Evaluate, Teacher, per_sample
from kdm_core.teachers.preconditioning import (
    EDMPreconditioning,
    PreconditioningConfig,
    build_preconditioning,
)


class DenoiserConfig(Config):
    """A network, how a denoiser is made of it, and how it is sampled where nothing else is said.

    Attributes:
        network: the architecture of what is trained, or was.
        preconditioning: how a denoiser is made of the network; a foreign network's is that of its
            training.
        grid: time grid where nothing else is said.
        p_mean, p_std: mean and standard deviation of log sigma in training (EDM, table 1).
    """

    kind: Literal["denoiser"]
    network: AnyNetworkConfig
    preconditioning: PreconditioningConfig = EDMPreconditioning()
    grid: Annotated[SigmaGrid | TimestepGrid, Field(discriminator="kind")] = KarrasGrid(
        kind="karras")
    p_mean: float = -1.2
    p_std: float = Field(1.2, gt=0)


class Denoiser(Teacher):
    """D(x; sigma) for x = x₀ + sigma ε; its time is the noise level sigma, down to 0."""

    config: DenoiserConfig
    end = 0.0
    ends_singular = True

    def __init__(self, config: DenoiserConfig, spec: SampleSpec) -> None:
        super().__init__(config, spec)
        self.preconditioning = build_preconditioning(config.preconditioning, spec.sigma_data)
        self.default_grid = config.grid
        self.lowest, self.highest = self.preconditioning.lowest, self.preconditioning.highest
        self.start = min(self.highest, getattr(config.grid, "sigma_max", inf))
        channels, *size = spec.sample_shape
        outputs = (channels * self.preconditioning.extra_outputs, *size)
        self.network = build_network(config.network, spec.sample_shape, outputs,
                                     timed=True, num_classes=spec.num_classes)

    def activations(self, x: Tensor, time: Tensor, labels: Tensor | None) -> list[Tensor]:
        return self.network.activations(lambda: self.denoise(x, time, labels))

    def class_weights(self) -> list[tuple[Tensor, int]]:
        return self.network.class_weights()

    def path(self, time: Tensor) -> Path:
        return Path(torch.ones_like(time), time)

    def time_at(self, level: Tensor) -> Tensor:
        # Zero noise is no level of training, but it is where all grids end.
        return torch.where(level > 0, self.preconditioning.round(level), level)

    def levels(self) -> Tensor | None:
        return self.preconditioning.levels()

    def network_times(self) -> list[float]:
        # A denoiser is never asked at noise level 0, but at the last one before.
        levels = self.levels()
        steps = 18 if levels is None else min(18, len(levels) // 2)  # a few levels give no more
        sigma = self._times(self.default_grid, steps)[[-2, 0]].to(torch.float32)
        times: list[float] = self.network_time(sigma).tolist()
        return times

    def network_time(self, time: Tensor) -> Tensor:
        return self.preconditioning.coefficients(time).noise

    def noise_scale(self, time: Tensor) -> Tensor:
        return (1 + time**2).sqrt() if self.preconditioning.variance_preserving else time

    def denoise(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        return self.denoise_by(self.network, x, time, labels)

    def denoise_by(
        self, network: Evaluate, x: Tensor, time: Tensor, labels: Tensor | None
    ) -> Tensor:
        """D(x; sigma) (eq. 7), in float32 but for the network."""
        sigma = per_sample(time, x).to(torch.float32)
        given = x.to(torch.float32)
        c = self.preconditioning.coefficients(sigma)
        output = network(c.input * given, c.noise.flatten().expand(x.shape[0]), labels)
        mean = output.to(torch.float32)[:, : x.shape[1]]
        denoised = c.skip * given + c.out * mean
        clip = self.preconditioning.clip
        return (denoised if clip is None else denoised.clamp(-clip, clip)).to(x.dtype)

    def velocity(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        """dx/dsigma = (x − D(x; sigma)) / sigma (eq. 3 with s = 1, sigma(t) = t)."""
        return (x - self.denoise(x, time, labels)) / per_sample(time, x)

    def loss(self, samples: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """E λ(sigma) ‖D(y + n; sigma) − y‖², λ = (sigma² + sd²) / (sigma · sd)² (table 1)."""
        c, sd = self.config, self.spec.sigma_data
        normal = torch.randn(len(samples), generator=generator, device=samples.device)
        sigma = (normal * c.p_std + c.p_mean).exp()
        s = per_sample(sigma, samples)
        noise = torch.randn(samples.shape, generator=generator, device=samples.device)
        denoised = self.denoise(samples + noise * s, sigma, labels)
        return ((s**2 + sd**2) / (s * sd) ** 2 * (denoised - samples) ** 2).mean()
