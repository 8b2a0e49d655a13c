"""How a denoiser is made of a network: D(x; sigma) = c_skip x + c_out F(c_in x; c_noise).

The columns of table 1 of EDM (Karras et al. 2022, arXiv:2206.00364), and the discrete noise levels
of DDPM and DDIM as diffusers has them. All work on x₀ + sigma ε, whatever the network was trained
on: a variance-preserving state is that divided by sqrt(1 + sigma²).
"""

from abc import ABC, abstractmethod
from math import exp, inf, sqrt
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor, nn

from kdm_core.config import Config
from kdm_core.solvers.grids import iddpm_levels


class EDMPreconditioning(Config):
    """EDM's own, for any noise level."""

    kind: Literal["edm"] = "edm"


class NonePreconditioning(Config):
    """None at all: the network is the denoiser D(x; sigma) itself."""

    kind: Literal["none"]


class VPPreconditioning(Config):
    """A noise predictor with continuous time (DDPM++ of Song et al.)."""

    kind: Literal["vp"]
    beta_d: float = Field(19.9, gt=0)
    beta_min: float = Field(0.1, gt=0)
    timesteps: int = Field(1000, ge=2)
    epsilon: float = Field(1e-5, gt=0, lt=1)


class VEPreconditioning(Config):
    """A predictor of the negative noise (NCSN++ of Song et al.)."""

    kind: Literal["ve"]
    sigma_min: float = Field(0.02, gt=0)
    sigma_max: float = Field(100.0, gt=0)


class IDDPMPreconditioning(Config):
    """A noise predictor with discrete levels and a variance head, which the ODE does not use."""

    kind: Literal["iddpm"]
    c_1: float = Field(0.001, gt=0)
    c_2: float = Field(0.008, gt=0)
    timesteps: int = Field(1000, ge=2)


class DiscretePreconditioning(Config):
    """A network trained on a list of variance-preserving noise levels (DDPM, DDIM).

    Attributes:
        prediction: what the network outputs: the noise, v = alpha ε − sigma x₀, or the sample.
        alphas_cumprod: alpha² of every training step, from almost 1 down to almost 0.
        clip: the denoised sample is clipped to ±clip, None for not at all.
        start: standard deviation of the state that the ODE starts with: that of the path for
            samples of variance 1, √(1 + sigma²) (`path`, as of DDIM), or that of the noise alone,
            sigma (`noise`, as of diffusers' Euler scheduler).
    """

    kind: Literal["discrete"]
    prediction: Literal["epsilon", "v_prediction", "sample"]
    alphas_cumprod: list[float] = Field(min_length=2)
    clip: float | None = Field(None, gt=0)
    start: Literal["path", "noise"] = "path"

    @model_serializer(mode="wrap")
    def _without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Teachers that start as all did before there was a choice keep their fingerprint."""
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if (key, value) != ("start", "path")}

    @model_validator(mode="after")
    def _descending(self) -> "DiscretePreconditioning":
        values = [1.0, *self.alphas_cumprod, 0.0]
        if not all(a > b for a, b in zip(values[:-1], values[1:], strict=True)):  # NaN is neither
            raise ValueError("alphas_cumprod: must fall strictly, between 1 and 0")
        return self


PreconditioningConfig = Annotated[
    EDMPreconditioning | NonePreconditioning | VPPreconditioning | VEPreconditioning
    | IDDPMPreconditioning | DiscretePreconditioning,
    Field(discriminator="kind"),
]


class Coefficients(NamedTuple):
    """c_skip, c_out, c_in and c_noise, in the shape of sigma."""

    skip: Tensor
    out: Tensor
    input: Tensor
    noise: Tensor


class Preconditioning(nn.Module, ABC):
    """See the module. `lowest` and `highest` bound the noise levels that the network knows."""

    lowest: float = 0.0
    highest: float = inf
    extra_outputs = 1  # the network's output channels, as a multiple of the sample's
    variance_preserving = False  # whether the noise it starts from is that of a VP state
    clip: float | None = None

    @abstractmethod
    def coefficients(self, sigma: Tensor) -> Coefficients:
        """The coefficients for noise levels of any shape, float32."""

    def round(self, sigma: Tensor) -> Tensor:
        """The nearest noise levels that the network knows."""
        return sigma

    def levels(self) -> Tensor | None:
        """All of them if they are discrete, ascending, float64."""
        return None


class EDM(Preconditioning):
    def __init__(self, sigma_data: float) -> None:
        super().__init__()
        self.sigma_data = sigma_data

    def coefficients(self, sigma: Tensor) -> Coefficients:
        total = sigma**2 + self.sigma_data**2
        return Coefficients(self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt(),
                            1 / total.sqrt(), sigma.log() / 4)


class Identity(Preconditioning):
    def coefficients(self, sigma: Tensor) -> Coefficients:
        one = torch.ones_like(sigma)
        return Coefficients(torch.zeros_like(sigma), one, one, sigma)


class VP(Preconditioning):
    def __init__(self, config: VPPreconditioning) -> None:
        super().__init__()
        self.config = config
        self.lowest, self.highest = self._sigma(config.epsilon), self._sigma(1.0)

    def _sigma(self, time: float) -> float:
        c = self.config
        return sqrt(exp(0.5 * c.beta_d * time**2 + c.beta_min * time) - 1)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        c = self.config
        root = (c.beta_min**2 + 2 * c.beta_d * (1 + sigma**2).log()).sqrt()
        time = (root - c.beta_min) / c.beta_d
        return Coefficients(torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1).sqrt(),
                            (c.timesteps - 1) * time)


class VE(Preconditioning):
    def __init__(self, config: VEPreconditioning) -> None:
        super().__init__()
        self.lowest, self.highest = config.sigma_min, config.sigma_max

    def coefficients(self, sigma: Tensor) -> Coefficients:
        return Coefficients(torch.ones_like(sigma), sigma, torch.ones_like(sigma),
                            (0.5 * sigma).log())


class IDDPM(Preconditioning):
    extra_outputs = 2
    table: Tensor

    def __init__(self, config: IDDPMPreconditioning) -> None:
        super().__init__()
        # In float32, as the original computes it: the levels it was trained on, to the bit.
        table = iddpm_levels(config.timesteps, config.c_1, config.c_2, torch.float32)
        self.register_buffer("table", table, persistent=False)
        self.lowest, self.highest = float(table[-2]), float(table[0])

    def _index(self, sigma: Tensor) -> Tensor:
        distance = (sigma.to(self.table.device, torch.float32)[..., None] - self.table).abs()
        return distance.argmin(dim=-1)

    def round(self, sigma: Tensor) -> Tensor:
        return self.table[self._index(sigma)].to(sigma)

    def levels(self) -> Tensor:
        return self.table[:-1].flip(0).cpu().double()

    def coefficients(self, sigma: Tensor) -> Coefficients:
        index = self._index(sigma).to(torch.float32)
        return Coefficients(torch.ones_like(sigma), -sigma, 1 / (sigma**2 + 1).sqrt(),
                            len(self.table) - 2 - index)


class Discrete(Preconditioning):
    table: Tensor

    def __init__(self, config: DiscretePreconditioning) -> None:
        super().__init__()
        self.prediction, self.clip = config.prediction, config.clip
        self.variance_preserving = config.start == "path"
        alphas = torch.tensor(config.alphas_cumprod, dtype=torch.float64)
        table = ((1 - alphas) / alphas).sqrt()
        self.lowest, self.highest = float(table[0]), float(table[-1])
        self.exact = table
        self.register_buffer("table", table.float(), persistent=False)

    def _index(self, sigma: Tensor) -> Tensor:
        distance = (sigma.to(self.table.device, torch.float32)[..., None] - self.table).abs()
        return distance.argmin(dim=-1)

    def round(self, sigma: Tensor) -> Tensor:
        return self.exact[self._index(sigma).cpu()].to(sigma)

    def levels(self) -> Tensor:
        return self.exact

    def coefficients(self, sigma: Tensor) -> Coefficients:
        alpha = 1 / (sigma**2 + 1).sqrt()
        time = self._index(sigma).to(torch.float32)
        one, zero = torch.ones_like(sigma), torch.zeros_like(sigma)
        skip, out = {"epsilon": (one, -sigma), "v_prediction": (alpha**2, -sigma * alpha),
                     "sample": (zero, one)}[self.prediction]
        return Coefficients(skip, out, alpha, time)


def build_preconditioning(config: PreconditioningConfig, sigma_data: float) -> Preconditioning:
    """The preconditioning that a configuration describes."""
    if isinstance(config, NonePreconditioning):
        return Identity()
    if isinstance(config, VPPreconditioning):
        return VP(config)
    if isinstance(config, VEPreconditioning):
        return VE(config)
    if isinstance(config, IDDPMPreconditioning):
        return IDDPM(config)
    if isinstance(config, DiscretePreconditioning):
        return Discrete(config)
    return EDM(sigma_data)
