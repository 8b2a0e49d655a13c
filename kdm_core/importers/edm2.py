"""Reading networks from the checkpoints of EDM2 (NVlabs/edm2), without running what is in them.

Such a file holds a dictionary with a network `ema`, an object `Precond` around a `UNet`, and the
`encoder` that turned images into what the network sees. Snapshots of training and networks of a
post-hoc average are alike. The head `logvar_*`, which estimates the loss in training, is left out.
"""

from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from kdm_core.config import Config
from kdm_core.errors import DataError, KDMError
from kdm_core.importers.persistent import PersistentObject, read_checkpoint
from kdm_core.importers.weights import check_weights
from kdm_core.networks.edm2_unet import Block, EDM2UNet, EDM2UNetConfig, MPConv, MPFourier

RGB_ENCODER, LATENT_ENCODER = "StandardRGBEncoder", "StabilityVAEEncoder"
LATENT_CHANNELS = 4
PREFIX, TRAINING_ONLY = "unet.", ("logvar_fourier.", "logvar_linear.")
POSITIONAL = 6  # arguments of `Precond` that have a place
CLASSES: dict[type[nn.Module], str] = {EDM2UNet: "UNet", nn.ModuleDict: "ModuleDict",
                                       Block: "Block", MPConv: "MPConv", MPFourier: "MPFourier"}


class EDM2Checkpoint(NamedTuple):
    """What a checkpoint says of a denoiser, whose preconditioning is EDM's.

    Attributes:
        sigma_data: the standard deviation of the data that it expects.
        shape: (C, H, W) of the images, whose values are in [-1, 1], or of the latents.
        latent: whether it makes latents.
        num_classes: 0 for an unconditional network.
        label_dropout: share of the labels that it was not shown in training; the published code
            knows none, which is 0.
        network: its configuration.
        tensors: its weights by the names of `EDM2UNet`, in the file's precision.
    """

    sigma_data: float
    shape: tuple[int, int, int]
    latent: bool
    num_classes: int
    label_dropout: float
    network: EDM2UNetConfig
    tensors: dict[str, Tensor]


class Arguments(Config):
    """What `Precond` was constructed with: names, order and defaults are those of EDM2."""

    img_resolution: int = Field(ge=1, le=2**12)
    img_channels: int = Field(ge=1, le=2**12)
    label_dim: int = Field(ge=0, le=2**20)
    use_fp16: bool = True
    sigma_data: float = Field(0.5, gt=0, allow_inf_nan=False)
    logvar_channels: int = 128
    model_channels: int = 192
    channel_mult: list[int] = [1, 2, 3, 4]
    channel_mult_noise: int | None = None
    channel_mult_emb: int | None = None
    num_blocks: int = 3
    attn_resolutions: list[int] = [16, 8]
    label_balance: float = 0.5
    concat_balance: float = 0.5
    resample_filter: Annotated[list[Literal[1]], Field(min_length=2, max_length=2)] = [1, 1]
    channels_per_head: int = 64
    dropout: float = 0.0
    res_balance: float = 0.3
    attn_balance: float = 0.3
    clip_act: float | None = 256.0
    label_dropout: float = Field(0.0, ge=0, le=1)  # of descendants of the published code

    def network(self) -> EDM2UNetConfig:
        return EDM2UNetConfig(
            kind="edm2_unet", channels=self.model_channels, multipliers=self.channel_mult,
            time_width=self.channel_mult_noise, embedding=self.channel_mult_emb,
            blocks=self.num_blocks, attention=self.attn_resolutions,
            label_balance=self.label_balance, concat_balance=self.concat_balance,
            res_balance=self.res_balance, attn_balance=self.attn_balance, clip_act=self.clip_act,
            channels_per_head=self.channels_per_head, dropout=self.dropout)


def read_edm2(content: bytes, place: str, key: str = "ema") -> EDM2Checkpoint:
    """Read a network that makes images or latents, and check all that the file says of it.

    Args:
        content: the file.
        place: its name, for messages.
        key: which network of the file.

    Raises:
        DataError: the file is damaged, holds something else, or says something of the network that
            our own does not do.
    """
    document = read_checkpoint(content, place)
    recorded = document.get(key)
    if not isinstance(recorded, PersistentObject):
        raise DataError(f"{place}: no network '{key}' among {str(sorted(document))[:200]}; "
                        "name one of them as key")
    try:
        arguments, config = parse_arguments(recorded)
        latent = makes_latents(document.get("encoder"), arguments.img_channels)
        tensors = take_tensors(recorded)
        # Weights in a file are counted before anything is made as large as it says.
        if config.blocks * len(config.multipliers) > len(tensors):
            raise DataError(f"{len(tensors)} tensors are too few for {config.blocks} blocks a "
                            "level: fetch the file again")
        shape = (arguments.img_channels, arguments.img_resolution, arguments.img_resolution)
        with torch.device("meta"):
            network = EDM2UNet(config, shape, shape, True, arguments.label_dim)
        check_weights(network, tensors)
        require_attributes(recorded, "Precond", {"sigma_data": arguments.sigma_data})
        require_module(recorded.modules.get("unet"), "unet", network)
    except KDMError as error:
        raise DataError(f"{place}: {error}") from error
    return EDM2Checkpoint(arguments.sigma_data, shape, latent, arguments.label_dim,
                          arguments.label_dropout, config, tensors)


def parse_arguments(recorded: PersistentObject) -> tuple[Arguments, EDM2UNetConfig]:
    """What the network was constructed with, and our configuration of it."""
    if recorded.class_name != "Precond":
        raise DataError(f"a network of class {recorded.class_name!a}, expected EDM2's Precond; a "
                        "checkpoint of EDM is of the source edm")
    if len(recorded.args) > POSITIONAL:
        raise DataError(f"Precond was constructed with {len(recorded.args)} arguments without a "
                        f"name, expected at most {POSITIONAL}")
    named = dict(zip(Arguments.model_fields, recorded.args, strict=False))
    try:
        arguments = Arguments.model_validate(named | recorded.kwargs)
        return arguments, arguments.network()
    except ValidationError as error:
        # Without the input, which may be of any size when written out.
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))[:100]
        raise DataError(f"the network's argument {where!a}: {first['msg']}; networks that were "
                        "altered in this way cannot be imported") from error


def makes_latents(encoder: object, channels: int) -> bool:
    """Whether a network makes latents. Without an encoder EDM2 takes a file to be one of images.

    Raises:
        DataError: it makes something else for that encoder.
    """
    name = encoder.class_name if isinstance(encoder, PersistentObject) else type(encoder).__name__
    if name == LATENT_ENCODER and channels == LATENT_CHANNELS:
        return True
    if (encoder is not None and name != RGB_ENCODER) or channels not in (1, 3):
        raise DataError(f"the network makes {channels} channels for the encoder {name!a}; known "
                        f"are images ({RGB_ENCODER}, or no encoder, with 1 or 3 channels) and "
                        f"latents ({LATENT_ENCODER}, with {LATENT_CHANNELS}): use a published "
                        "checkpoint, such as those named edm2-img64 or edm2-img512")
    return False


def take_tensors(recorded: PersistentObject) -> dict[str, Tensor]:
    """The weights by our own names."""
    found = {}
    for name, tensor in recorded.tensors().items():
        if name.startswith(TRAINING_ONLY):
            continue
        if not name.startswith(PREFIX) or not tensor.is_floating_point():
            raise DataError(f"the network has an unknown tensor {name!a} of {tensor.dtype}")
        found[name.removeprefix(PREFIX)] = tensor
    return found


def require_module(recorded: PersistentObject | None, name: str, module: nn.Module) -> None:
    """Compare classes, children in their order, and settings with those of our own modules."""
    class_name = recorded.class_name if recorded is not None else None
    if recorded is None or class_name != CLASSES[type(module)]:
        raise DataError(f"{name} is a {class_name!a}, expected {CLASSES[type(module)]}")
    children = dict(module.named_children())
    if list(recorded.modules) != list(children):
        raise DataError(f"{name} holds modules {ascii(list(recorded.modules))[:200]}, expected "
                        f"{list(children)}")
    require_attributes(recorded, name, settings(module))
    for child, own in children.items():
        require_module(recorded.modules[child], f"{name}.{child}", own)


def settings(module: nn.Module) -> dict[str, Any]:
    """What EDM2 keeps in a module of that kind, apart from what only training needs."""
    match module:
        case EDM2UNet(config=c):
            return {"label_balance": c.label_balance, "concat_balance": c.concat_balance}
        case Block(config=c):
            return {"flavor": "dec" if module.decoder else "enc", "resample_mode": module.mode,
                    "resample_filter": [1, 1], "num_heads": module.heads, "clip_act": c.clip_act,
                    "res_balance": c.res_balance, "attn_balance": c.attn_balance}
    return {}


def require_attributes(recorded: PersistentObject, name: str, expected: dict[str, Any]) -> None:
    """The state is what the original runs with: arguments might say something else."""
    for attribute, value in expected.items():
        found = recorded.attributes.get(attribute)
        if not same(found, value):
            raise DataError(f"{name}.{attribute} is not {value}, as the network's arguments say: "
                            "networks that were altered later cannot be imported")


def same(found: object, expected: object) -> bool:
    """Equality of plain values, without asking values of other types."""
    if isinstance(expected, list):
        return (isinstance(found, list) and len(found) == len(expected)
                and all(map(same, found, expected)))
    return isinstance(found, int | float | str | None) and found == expected
