"""Teachers from folders of diffusers: a `UNet2DModel` or a DiT with its scheduler.

Read are the network's `config.json`, its weights as safetensors and `scheduler_config.json`, in
`unet/` or `transformer/` and `scheduler/` as pipelines have them, or side by side as older ones do.
"""

from typing import Literal

from pydantic import Field, ValidationError

from kdm_core.config import Config
from kdm_core.errors import DataError
from kdm_core.importers.diffusers.classes import name_classes
from kdm_core.importers.diffusers.folders import (
    CONFIG,
    FILES,
    LATENT,
    SCHEDULER,
    WEIGHTS,
    class_table,
    locate,
    parts_of,
    read_index,
    require_supported,
    require_weights,
)
from kdm_core.importers.diffusers.networks import Found, read_network
from kdm_core.importers.diffusers.schedulers import read_schedule, reason
from kdm_core.importers.files import fetch_folder, require_sha256
from kdm_core.importers.samples import samples_like
from kdm_core.importers.weights import load_weights
from kdm_core.networks.diffusers_dit import DiffusersDiT
from kdm_core.networks.diffusers_unet import DiffusersUNet
from kdm_core.networks.foreign import import_diffusers_library
from kdm_core.samples import SampleSpec
from kdm_core.teachers import Denoiser, DenoiserConfig

__all__ = ["DiffusersSource", "import_diffusers"]


class DiffusersSource(Config):
    """A pipeline of diffusers that makes images with a `UNet2DModel`, or latents with a DiT.

    Attributes:
        folder: a local folder, or OWNER/NAME on the hub.
        revision: branch, tag or commit on the hub.
        sha256: of the file with the network's weights.
    """

    source: Literal["diffusers"]
    folder: str = Field(min_length=1)
    revision: str | None = Field(None, min_length=1)
    sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$")


def import_diffusers(source: DiffusersSource, data: SampleSpec) -> Denoiser:
    """The denoiser in a folder of diffusers, in float32.

    It makes latents where the pipeline has an autoencoder, or the data are latents. What the folder
    does not say is as of `data`: height and width of some U-Nets, sigma_data, the autoencoder.

    Raises:
        DataError: something is missing, damaged, or of a kind that is not read.
        MismatchError: the weights are others than pinned, or not those of the network.
        KDMError: diffusers is not installed.
    """
    diffusers = import_diffusers_library()
    folder = fetch_folder(source.folder, source.revision, FILES)
    index = read_index(folder)
    parts = parts_of(folder, index)
    require_supported(folder, parts)
    place = locate(folder, ("unet", "transformer"), CONFIG).parent
    schedule = read_schedule(diffusers, locate(folder, ("scheduler",), SCHEDULER))
    require_weights(place)
    require_sha256(place / WEIGHTS, source.sha256, str(place / WEIGHTS))
    found = read_network(diffusers, place)
    names, named = name_classes(found.num_classes, data, class_table(folder, index,
                                                                     found.num_classes))
    try:
        spec = samples_like(data, found.shape_for(data), names, latent=LATENT in parts or None,
                            sigma_data=schedule.sigma_data)
    except (ValidationError, TypeError) as error:
        raise DataError(f"{place / CONFIG}: its sizes make no sense ({reason(error)}): fetch it "
                        "again") from error
    config = DenoiserConfig(kind="denoiser", network=found.config,
                            preconditioning=schedule.preconditioning, grid=schedule.grid)
    teacher = with_weights(Denoiser(config, spec), found, str(place / WEIGHTS))
    teacher.named = named
    return teacher.eval().requires_grad_(False)


def with_weights(teacher: Denoiser, found: Found, place: str) -> Denoiser:
    """The teacher with the weights that were found, which are not copied again."""
    network = teacher.network
    if isinstance(network, DiffusersDiT):
        load_weights(network.transformer, found.tensors, place, assign=True)
        teacher.label_dropout = network.label_dropout
    else:
        assert isinstance(network, DiffusersUNet)
        load_weights(network.unet, found.tensors, place, assign=True)
        teacher.label_dropout = 0.0  # its embedding has a row for each class, none for no label
    return teacher
