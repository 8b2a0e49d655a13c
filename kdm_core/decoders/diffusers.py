"""Autoencoders of diffusers (`AutoencoderKL`, `AutoencoderTiny`), by that package.

Their weights are float32 here: some of the KL ones overflow in half precision (`force_upcast`).
"""

from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from torch import Tensor

from kdm_core.config import Config
from kdm_core.decoders.base import Autoencoder
from kdm_core.errors import KDMError, MismatchError
from kdm_core.importers.diffusers_folder import reason
from kdm_core.networks.foreign import import_diffusers_library

ImageRange = Literal["signed", "unit"]
Name = Literal["AutoencoderKL", "AutoencoderTiny"]


class DiffusersAutoencoderConfig(Config):
    """An autoencoder of diffusers.

    Attributes:
        name: its class there.
        arguments: of that class, by its names.
        image_range: of the images that it takes and gives: `signed` is [-1, 1] as in diffusers'
            pipelines, `unit` is [0, 1].
    """

    kind: Literal["diffusers_autoencoder"]
    name: Name
    arguments: dict[str, JsonValue] = {}
    image_range: ImageRange = "signed"


class Described(BaseModel):
    """What shape and scaling of latents follow from, with diffusers' defaults."""

    model_config = ConfigDict(allow_inf_nan=False)
    in_channels: int = Field(3, ge=1)
    out_channels: int = Field(3, ge=1)
    latent_channels: int = Field(4, ge=1)
    scaling_factor: float = Field(gt=0)
    shift_factor: float | None = None
    latents_mean: list[float] | None = None
    latents_std: list[Annotated[float, Field(gt=0)]] | None = None

    @property
    def halvings(self) -> int:
        """How often the resolution is halved."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _unambiguous(self) -> "Described":
        if (self.latents_mean is None) != (self.latents_std is None):
            raise ValueError("latents_mean and latents_std belong together")
        if self.latents_mean is not None and self.shift_factor:
            raise ValueError("there are both shift_factor and latents_mean, and no pipeline of "
                             "diffusers uses both")
        if any(len(values) != self.latent_channels for values in
               (self.latents_mean, self.latents_std) if values is not None):
            raise ValueError(f"latents have {self.latent_channels} channels, latents_mean and "
                             "latents_std another number")
        return self


class DescribedKL(Described):
    scaling_factor: float = Field(0.18215, gt=0)
    block_out_channels: list[int] = Field([64], min_length=1)

    @property
    def halvings(self) -> int:
        return len(self.block_out_channels) - 1


class DescribedTiny(Described):
    scaling_factor: float = Field(1.0, gt=0)
    num_encoder_blocks: list[int] = Field([1, 3, 3, 3], min_length=1)

    @property
    def halvings(self) -> int:
        return len(self.num_encoder_blocks) - 1


DESCRIBED: dict[Name, type[Described]] = {
    "AutoencoderKL": DescribedKL, "AutoencoderTiny": DescribedTiny}


class DiffusersAutoencoder(Autoencoder):
    """See `DiffusersAutoencoderConfig`. Latents are scaled as diffusers' pipelines scale them,
    until `rescale` says otherwise; of a KL one they are the mode of its distribution."""

    config: DiffusersAutoencoderConfig

    def __init__(self, config: DiffusersAutoencoderConfig, picture: list[int]) -> None:
        """
        Raises:
            KDMError: the package is missing, the arguments describe no such autoencoder, or one
                that is not for images of this shape.
        """
        super().__init__(picture, diffusers_shape(config, picture))
        self.config = config
        try:
            self.network = getattr(import_diffusers_library(), config.name)(**config.arguments)
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise KDMError(f"diffusers builds no {config.name} of these: {error}",
                           field="arguments") from error
        self.rescale(*pipeline_scaling(config))

    def raw_encode(self, images: Tensor) -> Tensor:
        unit = self.config.image_range == "unit"
        found: Any = self.network.encode((images + 1) / 2 if unit else images)
        raw: Tensor = (found.latents if self.config.name == "AutoencoderTiny" else
                       found.latent_dist.mode())
        return raw

    def raw_decode(self, latents: Tensor) -> Tensor:
        images: Tensor = self.network.decode(latents).sample
        return images * 2 - 1 if self.config.image_range == "unit" else images


def described(config: DiffusersAutoencoderConfig) -> Described:
    """What the arguments say.

    Raises:
        KDMError: they make no sense.
    """
    try:
        return DESCRIBED[config.name].model_validate(config.arguments)
    except ValidationError as error:
        raise KDMError(f"they make no sense ({reason(error)}): correct them, or fetch them again",
                       field="arguments") from error


def diffusers_shape(config: DiffusersAutoencoderConfig, picture: list[int]) -> list[int]:
    """The shape (C, H, W) of the latents of images of shape `picture`.

    Raises:
        KDMError: the arguments make no sense.
        MismatchError: the autoencoder is for other images.
    """
    found = described(config)
    side = 2**found.halvings
    if len(picture) != 3 or not found.in_channels == found.out_channels == picture[0]:
        raise MismatchError(f"this autoencoder takes images of {found.in_channels} channels and "
                            f"gives some of {found.out_channels}, the data are of shape {picture}: "
                            "choose data or an autoencoder of the other's channels", field="")
    if any(length % side for length in picture[1:]):
        raise MismatchError(f"this autoencoder needs images whose height and width are divisible "
                            f"by {side}, found {picture[1:]}: choose images of another size, or "
                            "another autoencoder", field="")
    return [found.latent_channels, *(length // side for length in picture[1:])]


def pipeline_scaling(config: DiffusersAutoencoderConfig) -> tuple[Tensor, Tensor]:
    """Shift and scale (C,) of latents in the pipelines of such an autoencoder.

    They are (raw - shift_factor) · scaling_factor or, with statistics of each channel,
    (raw - latents_mean) · scaling_factor / latents_std. The `scale_latents` of an AutoencoderTiny,
    which keeps latents as images, is used by no pipeline.

    Raises:
        KDMError: the arguments make no sense.
    """
    found = described(config)
    ones = torch.ones(found.latent_channels)
    if found.latents_mean is None or found.latents_std is None:
        return (found.shift_factor or 0.0) * ones, found.scaling_factor * ones
    return torch.tensor(found.latents_mean), found.scaling_factor / torch.tensor(found.latents_std)
