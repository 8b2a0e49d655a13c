"""Autoencoders on disk."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from kdm_core.config import Config
from kdm_core.decoders.base import Autoencoder
from kdm_core.decoders.conv import ConvAutoencoder, ConvAutoencoderConfig, conv_shape
from kdm_core.decoders.diffusers import (
    DiffusersAutoencoder,
    DiffusersAutoencoderConfig,
    diffusers_shape,
)
from kdm_core.errors import DataError
from kdm_core.importers.diffusers_folder import reason
from kdm_core.serialization import CONFIG, load_model, read_json, save_model

AutoencoderConfig = Annotated[ConvAutoencoderConfig | DiffusersAutoencoderConfig,
                              Field(discriminator="kind")]


class Saved(Config):
    """What a folder says of its autoencoder."""

    autoencoder: AutoencoderConfig
    picture: list[int]

    @property
    def shape(self) -> list[int]:
        """Of its latents."""
        return shape_of(self.autoencoder, self.picture)


def build_autoencoder(config: AutoencoderConfig, picture: list[int]) -> Autoencoder:
    """An autoencoder with fresh weights for images of shape `picture`.

    Raises:
        KDMError: it is not for such images, or a package is missing.
    """
    if isinstance(config, ConvAutoencoderConfig):
        return ConvAutoencoder(config, picture)
    return DiffusersAutoencoder(config, picture)


def shape_of(config: AutoencoderConfig, picture: list[int]) -> list[int]:
    """The shape (C, H, W) of the latents of images of shape `picture`.

    Raises:
        KDMError: the autoencoder is not for such images.
    """
    if isinstance(config, ConvAutoencoderConfig):
        return conv_shape(config, picture)
    return diffusers_shape(config, picture)


def save_autoencoder(folder: Path, model: Autoencoder) -> str:
    """Write an autoencoder as safetensors and JSON; returns its fingerprint."""
    return save_model(folder, model, {"autoencoder": model.config.model_dump(),
                                      "picture": model.picture})


def load_autoencoder(folder: Path) -> tuple[Autoencoder, str]:
    """Read what `save_autoencoder` wrote; returns the model in eval mode and its fingerprint.

    Raises:
        DataError, MismatchError: as `kdm_core.serialization.load_model`; or the folder holds
            something else.
        KDMError: a package that the autoencoder needs is missing.
    """

    def build(config: dict[str, Any]) -> Autoencoder:
        saved = parse(config, folder)
        return build_autoencoder(saved.autoencoder, saved.picture)

    return load_model(folder, build)


def read_saved(folder: Path) -> Saved:
    """What `load_autoencoder` would read, without the weights.

    Raises:
        DataError: the configuration is missing, damaged, or of something else.
    """
    described = read_json(folder / CONFIG)
    if isinstance(described, dict):
        described.pop("fingerprint", None)
    return parse(described, folder)


def parse(config: Any, folder: Path) -> Saved:
    try:
        return Saved.model_validate(config)
    except ValidationError as error:
        raise DataError(f"{folder / CONFIG} describes no autoencoder ({reason(error)}): name a "
                        "folder that was saved for one", field="folder") from error
