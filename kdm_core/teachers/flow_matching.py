"""Conditional-OT flow matching (Lipman et al. 2023, arXiv:2210.02747, section 4.1)."""

from math import inf
from typing import Literal

import torch
from torch import Tensor

from kdm_core.config import Config
from kdm_core.networks import AnyNetworkConfig, build_network
from kdm_core.samples import SampleSpec
from kdm_core.solvers import Path
from kdm_core.solvers.grids import GridConfig, UniformGrid
from kdm_core.teachers.base import Evaluate, Teacher, per_sample


class FlowMatchingConfig(Config):
    """A velocity field on straight paths from noise to samples (sigma_min = 0).

    Attributes:
        network: the architecture of what is trained, or was.
        grid: time grid where nothing else is said.
        normalised: whether the network is shown the state divided by its standard deviation;
            imported networks are mostly not.
    """

    kind: Literal["flow_matching"]
    network: AnyNetworkConfig
    grid: GridConfig = UniformGrid(kind="uniform")
    normalised: bool = True


class FlowMatching(Teacher):
    """A velocity field v(x, t) for x = (1 − t) ε + t x₀; its time runs from 0 to 1."""

    config: FlowMatchingConfig
    start, end = 0.0, 1.0
    lowest, highest = 0.0, inf

    def __init__(self, config: FlowMatchingConfig, spec: SampleSpec) -> None:
        super().__init__(config, spec)
        self.default_grid = config.grid
        self.network = build_network(config.network, spec.sample_shape, spec.sample_shape,
                                     timed=True, num_classes=spec.num_classes)

    def activations(self, x: Tensor, time: Tensor, labels: Tensor | None) -> list[Tensor]:
        return self.network.activations(lambda: self.denoise(x, time, labels))

    def class_weights(self) -> list[tuple[Tensor, int]]:
        return self.network.class_weights()

    def path(self, time: Tensor) -> Path:
        return Path(time, 1 - time)

    def network_times(self) -> list[float]:
        return [self.end, self.start]

    def time_at(self, level: Tensor) -> Tensor:
        return 1 / (1 + level)

    def network_time(self, time: Tensor) -> Tensor:
        return time

    def velocity(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        return self.velocity_by(self.network, x, time, labels)

    def velocity_by(
        self, network: Evaluate, x: Tensor, time: Tensor, labels: Tensor | None
    ) -> Tensor:
        """v(x, t), in float32 but for the network."""
        t = per_sample(time, x).to(torch.float32)
        given = x.to(torch.float32)
        if self.config.normalised:
            given = given / ((1 - t) ** 2 + (t * self.spec.sigma_data) ** 2).sqrt()
        return network(given, t.flatten().expand(x.shape[0]), labels).to(x.dtype)

    def denoise(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        return self.denoise_by(self.network, x, time, labels)

    def denoise_by(
        self, network: Evaluate, x: Tensor, time: Tensor, labels: Tensor | None
    ) -> Tensor:
        """E[x₀ | x] = x + (1 − t) v(x, t), since v is the expectation of x₀ − ε."""
        return x + (1 - per_sample(time, x)) * self.velocity_by(network, x, time, labels)

    def loss(self, samples: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """E ‖v((1 − t) ε + t x₀, t) − (x₀ − ε)‖², t uniform (eq. 23)."""
        t = torch.rand(len(samples), generator=generator, device=samples.device)
        noise = torch.randn(samples.shape, generator=generator, device=samples.device)
        time = per_sample(t, samples)
        x = (1 - time) * noise + time * samples
        return ((self.velocity(x, t, labels) - (samples - noise)) ** 2).mean()
