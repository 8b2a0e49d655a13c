"""Where an autoencoder comes from: trained here, a folder of diffusers, or one that was saved."""

import copy
import itertools
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from kdm_core.config import Config
from kdm_core.decoders.base import Autoencoder
from kdm_core.decoders.conv import ConvAutoencoderConfig, conv_shape
from kdm_core.decoders.diffusers import (
    DESCRIBED,
    DiffusersAutoencoder,
    DiffusersAutoencoderConfig,
    ImageRange,
    Name,
    described,
    diffusers_shape,
)
from kdm_core.decoders.statistics import ChannelStatistics, set_statistics
from kdm_core.decoders.storage import load_autoencoder, read_saved
from kdm_core.decoders.training import KL
from kdm_core.errors import DataError, KDMError, MismatchError, placed
from kdm_core.importers.diffusers_folder import (
    CONFIG,
    PIPELINE,
    WEIGHTS,
    load_network,
    locate,
    network_arguments,
    read_config,
    read_index,
    require_weights,
)
from kdm_core.importers.files import fetch_folder, require_sha256
from kdm_core.importers.weights import load_weights
from kdm_core.networks.foreign import import_diffusers_library
from kdm_core.training.config import TrainingConfig

CLASSES: tuple[Name, ...] = ("AutoencoderKL", "AutoencoderTiny")
CONFIGS = [PIPELINE, CONFIG, f"vae/{CONFIG}"]
FILES = [*CONFIGS, WEIGHTS, f"vae/{WEIGHTS}"]
QUANTISING = ("vqvae", "movq")
"""What pipelines call the autoencoders that quantise their latents."""
FACTORS = (8, 4, 16, 32, 2, 1)
"""Sides of an image a side of its latents, the usual ones first."""
DERIVED = ("block_out_channels",)
"""What an AutoencoderTiny's configuration has beside its arguments."""


class TrainedAutoencoder(Config):
    """One that is trained here, on the images of the run.

    Attributes:
        model: what it is.
        training: how long, on what batches and how fast.
        kl: weight of the divergence of its latents from the standard normal distribution.
        perceptual: weight of LPIPS (AlexNet's) beside the squared error; 0 for none.
    """

    source: Literal["train"]
    model: ConvAutoencoderConfig
    training: TrainingConfig
    kl: float = Field(KL, ge=0)
    perceptual: float = Field(0.0, ge=0)


class DiffusersAutoencoderSource(Config):
    """An `AutoencoderKL` or `AutoencoderTiny` of diffusers.

    Attributes:
        folder: a local folder, or OWNER/NAME on the hub, of a pipeline with a `vae` in it or of the
            autoencoder alone.
        revision: branch, tag or commit on the hub.
        sha256: of the file with the weights.
        statistics: of its latents, which are scaled by these in the place of its own factor.
        image_range: of the images that it is used with: `signed` is [-1, 1], `unit` is [0, 1],
            which EDM2 gives and takes.
    """

    source: Literal["diffusers"]
    folder: str = Field(min_length=1)
    revision: str | None = Field(None, min_length=1)
    sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$")
    statistics: ChannelStatistics | None = None
    image_range: ImageRange = "signed"


class FolderAutoencoderSource(Config):
    """A folder of safetensors and JSON that another run saved.

    Attributes:
        folder: where it lies.
    """

    source: Literal["folder"]
    folder: str = Field(min_length=1)


ForeignAutoencoderSource = Annotated[DiffusersAutoencoderSource | FolderAutoencoderSource,
                                     Field(discriminator="source")]
"""Those that come with weights."""
AutoencoderSource = Annotated[
    TrainedAutoencoder | DiffusersAutoencoderSource | FolderAutoencoderSource,
    Field(discriminator="source")]


def import_autoencoder(
    source: ForeignAutoencoderSource, picture: list[int], shape: list[int] | None = None
) -> Autoencoder:
    """The autoencoder that a source describes, with its weights, in eval mode on the CPU.

    Args:
        source: where it comes from.
        picture: shape (C, H, W) of the images that it is for.
        shape: of the latents that it should have; None for any.

    Raises:
        DataError: a file is missing, damaged or holds something else.
        MismatchError: it is for other images or latents, or its weights are others than pinned.
        KDMError: a package is missing.
    """
    expect(latent_shape(source, picture), shape, picture)
    if isinstance(source, FolderAutoencoderSource):
        return load_autoencoder(Path(source.folder))[0]
    return import_diffusers_autoencoder(source, picture)


def latent_shape(source: AutoencoderSource, picture: list[int]) -> list[int]:
    """The shape (C, H, W) of the latents of images of shape `picture`.

    No weights are read, or fetched.

    Raises: as `import_autoencoder`.
    """
    if isinstance(source, TrainedAutoencoder):
        with placed("model"):
            return conv_shape(source.model, picture)
    if isinstance(source, FolderAutoencoderSource):
        saved = read_saved(Path(source.folder))
        if saved.picture != picture:
            raise MismatchError(f"{source.folder} is for images of shape {saved.picture}, the data "
                                f"are of shape {picture}: choose data or an autoencoder of the "
                                "other's shape", field="folder")
        return saved.shape
    path, found = find_vae(fetch_folder(source.folder, source.revision, CONFIGS))
    return diffusers_shape(config_of(source, found, path), picture)


def picture_shape(source: ForeignAutoencoderSource, shape: list[int]) -> list[int]:
    """The shape (C, H, W) of the images that become latents of shape `shape`, as `latent_shape`
    says the other way round.

    Raises: as `import_autoencoder`.
    """
    if isinstance(source, FolderAutoencoderSource):
        saved = read_saved(Path(source.folder))
        expect(saved.shape, shape, saved.picture)
        return saved.picture
    for channels, times in itertools.product((3, 1), FACTORS):
        picture = [channels, *(times * side for side in shape[1:])]
        with suppress(KDMError):
            if latent_shape(source, picture) == shape:
                return picture
    raise MismatchError(f"this autoencoder makes latents of shape {shape} of no images: choose the "
                        "one that these latents were made with", field="folder")


def expect(found: list[int], shape: list[int] | None, picture: list[int]) -> None:
    """Make sure that latents have the shape that they should, if there is one.

    Raises:
        MismatchError: they have another.
    """
    if shape is not None and found != shape:
        raise MismatchError(f"this autoencoder makes latents of shape {found} of images of shape "
                            f"{picture}, and not {shape}: choose the one that these latents were "
                            "made with", field="")


# Of diffusers


def import_diffusers_autoencoder(
    source: DiffusersAutoencoderSource, picture: list[int]
) -> DiffusersAutoencoder:
    """The autoencoder in a folder of diffusers.

    Raises:
        DataError: something is missing, damaged, or of a kind that is not read.
        MismatchError: the weights are others than pinned, or the images not those it is for.
        KDMError: diffusers is not installed, or the statistics are not those of its latents.
    """
    diffusers = import_diffusers_library()
    path, found = find_vae(fetch_folder(source.folder, source.revision, FILES))
    config = config_of(source, found, path)
    require_weights(path.parent)
    weights = path.parent / WEIGHTS
    require_sha256(weights, source.sha256, str(weights))
    network = load_network(getattr(diffusers, config.name), path.parent)
    arguments = network_arguments(network, found, path, DERIVED)
    model = DiffusersAutoencoder(config.model_copy(update={"arguments": arguments}), picture)
    load_weights(model.network, network.state_dict(), str(weights))
    require_sizes(model, path)
    if source.statistics is not None:
        set_statistics(model, source.statistics)
    return model.eval().requires_grad_(False)


def find_vae(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The configuration of a pipeline's autoencoder, or of the one that lies in the folder itself.

    Raises:
        DataError: there is none, or it is of a kind that is not read.
    """
    parts = {path.name for path in folder.iterdir()} | set(read_index(folder))
    if "vae" not in parts:
        if found := sorted(parts & set(QUANTISING)):
            raise DataError(f"{folder} has a {found[0]}: {quantises()}", field="folder")
        if (folder / PIPELINE).is_file():
            raise DataError(f"{folder} is a pipeline without a vae, which makes its images without "
                            "latents: leave the autoencoder out, or name a folder that has one",
                            field="folder")
    path = locate(folder, ("vae",), CONFIG)
    return path, read_config(path, CLASSES, other_kind)


def quantises() -> str:
    return ("it quantises its latents, which models of continuous values do not make: choose an "
            "AutoencoderKL or AutoencoderTiny")


def other_kind(found: dict[str, Any]) -> str:
    """What to do about an autoencoder of another class."""
    name = str(found.get("_class_name"))
    return f"A {name}: {quantises()}" if name.startswith("VQ") else "Choose one of these"


def config_of(
    source: DiffusersAutoencoderSource, found: dict[str, Any], path: Path
) -> DiffusersAutoencoderConfig:
    """The configuration of ours for one of diffusers.

    Raises:
        DataError: it makes no sense; or neither it nor the source says how latents are scaled.
    """
    name: Name = found["_class_name"]
    if "scaling_factor" not in found and source.statistics is None:
        default = DESCRIBED[name].model_fields["scaling_factor"].default
        raise DataError(
            f"{path} has no scaling_factor: add the one that the diffusion model's authors divide "
            f'latents by (diffusers takes "scaling_factor": {default} where there is none), or '
            "give statistics of the latents", field="statistics")
    arguments = {key: value for key, value in found.items() if not key.startswith("_")}
    config = DiffusersAutoencoderConfig(kind="diffusers_autoencoder", name=name,
                                        arguments=arguments, image_range=source.image_range)
    try:
        described(config)
    except KDMError as error:
        raise DataError(f"{path}: {error}") from error
    return config


def require_sizes(model: DiffusersAutoencoder, path: Path) -> None:
    """Make sure that a network changes sizes as its configuration lets expect.

    Raises:
        DataError: it does not.
    """
    probe = copy.deepcopy(model).to("meta")
    try:
        sizes = [list(probe.raw_encode(torch.empty(1, *model.picture, device="meta")).shape[1:]),
                 list(probe.raw_decode(torch.empty(1, *model.shape, device="meta")).shape[1:])]
    except (RuntimeError, ValueError, TypeError) as error:
        raise DataError(f"{path}: images of shape {model.picture} do not pass through what it "
                        f"describes ({error}): fetch it again, or choose another one") from error
    if sizes != [model.shape, model.picture]:
        raise DataError(f"{path}: it makes latents of shape {sizes[0]} of images of shape "
                        f"{model.picture}, and images of shape {sizes[1]} of latents of shape "
                        f"{model.shape}: such autoencoders are not supported, choose another one")
