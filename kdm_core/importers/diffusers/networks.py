"""Networks in a folder of diffusers, held against their weights."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdm_core.errors import DataError, KDMError
from kdm_core.importers.diffusers.folders import CONFIG, WEIGHTS, read_config
from kdm_core.importers.state_dict import read_state_dict
from kdm_core.importers.weights import check_layout
from kdm_core.networks.diffusers_dit import CLASS as DIT
from kdm_core.networks.diffusers_dit import DiffusersDiT, DiffusersDiTConfig
from kdm_core.networks.diffusers_unet import DiffusersUNetConfig
from kdm_core.samples import SampleSpec

UNET = "UNet2DModel"
DIT_BEFORE = "Transformer2DModel"  # what DiT's configurations said before it had a class
DIT_NORM = "ada_norm_zero"
MAX_SIDE = 1024


class Found(NamedTuple):
    """A network and its weights.

    Attributes:
        config: of our network around it.
        channels, size: of what it makes; the size as its configuration has it, None if open.
        num_classes: 0 if it takes no labels.
        tensors: its weights by the names of diffusers.
    """

    config: DiffusersUNetConfig | DiffusersDiTConfig
    channels: int
    size: Any
    num_classes: int
    tensors: dict[str, Tensor]

    def shape_for(self, data: SampleSpec) -> list[Any]:
        """Of one sample, whose size is that of `data` where the network takes any."""
        if self.size is None:
            return [self.channels, *data.shape[1:]]
        return [self.channels, *([self.size] * 2 if isinstance(self.size, int) else self.size)]


def read_network(diffusers: Any, place: Path) -> Found:
    """The network whose configuration and weights lie side by side.

    Raises:
        DataError: one of them is damaged, of another kind, or not the other's.
    """
    described = read_config(place / CONFIG, (UNET, DIT, DIT_BEFORE),
                            lambda _: "Choose a pipeline with such a network")
    if described["_class_name"] == UNET:
        return read_unet(diffusers, described, place)
    return read_dit(diffusers, described, place)


def require_known(described: Mapping[str, Any], known: set[str], path: Path) -> None:
    """Refuse arguments that this version of diffusers does not know.

    Raises:
        DataError: there is one.
    """
    if unknown := sorted(name for name in described.keys() - known if not name.startswith("_")):
        raise DataError(f"{path}: this version of diffusers knows no {', '.join(unknown)}; remove "
                        "it if it means nothing, or install a newer version")


# U-Nets


def read_unet(diffusers: Any, described: dict[str, Any], place: Path) -> Found:
    """A U-Net, by diffusers itself, which knows the tensors' older names.

    Raises:
        DataError: it is damaged, or makes more than a sample.
    """
    unet, path = load_unet(diffusers, place), place / CONFIG
    known = set(inspect.signature(type(unet).__init__).parameters) - {"self"}
    require_known(described, known, path)
    arguments: dict[str, Any] = json.loads(json.dumps(
        {name: value for name, value in unet.config.items() if name in known}))
    channels = arguments["in_channels"]
    if arguments["out_channels"] != channels:
        raise DataError(f"{path}: {channels} channels in and {arguments['out_channels']} out: "
                        "U-Nets that predict a variance, too, are not supported")
    if arguments["class_embed_type"] is not None:
        raise DataError(f"{path}: class_embed_type {arguments['class_embed_type']} is not "
                        "supported, only num_class_embeds")
    config = DiffusersUNetConfig(kind="diffusers_unet", arguments=arguments)
    return Found(config, channels, arguments["sample_size"], arguments["num_class_embeds"] or 0,
                 unet.state_dict())


def load_unet(diffusers: Any, place: Path) -> Any:
    """The U-Net, with its weights in float32.

    Raises:
        DataError: the file is damaged, or not that of this U-Net.
    """
    try:
        unet, found = diffusers.UNet2DModel.from_pretrained(
            place, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False,
            torch_dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # of safetensors, of torch, and of what diffusers makes of a config
        text = " ".join(str(error).split())[:400]
        raise DataError(f"diffusers cannot load {place} ({text}): fetch it again",
                        field="folder") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(str(name) for name in found[kind]):
            raise DataError(f"{place / WEIGHTS} does not fit {place / CONFIG}: {len(names)} "
                            f"{kind.replace('_', ' ')} ({', '.join(names[:3])}): fetch both again")
    return unet


# DiT


def read_dit(diffusers: Any, described: dict[str, Any], place: Path) -> Found:
    """A DiT. Its configuration is held against the file before anything is made as large as it
    says.

    Raises:
        DataError: it is damaged, or is no class-conditional DiT.
    """
    path = place / CONFIG
    arguments = dit_arguments(diffusers, described, path)
    tensors = read_state_dict(place / WEIGHTS, None)
    layers, side = arguments["num_layers"], arguments["sample_size"]
    if not isinstance(layers, int) or not 1 <= layers <= len(tensors):
        raise DataError(f"{path}: num_layers is {str(layers)[:100]}, and there are "
                        f"{len(tensors)} tensors: fetch both again")
    if not isinstance(side, int) or not 1 <= side <= MAX_SIDE:
        raise DataError(f"{path}: its sizes make no sense (sample_size {str(side)[:100]}; up to "
                        f"{MAX_SIDE} are read): fetch it again")
    config = DiffusersDiTConfig(kind="diffusers_dit", arguments=arguments)
    channels, classes = arguments["in_channels"], arguments["num_embeds_ada_norm"]
    shape = (channels, side, side)
    try:
        with torch.device("meta"):
            network = DiffusersDiT(config, shape, shape, True, classes)
        check_layout(network.transformer, tensors)
    except KDMError as error:
        raise DataError(f"{place / WEIGHTS} does not fit {path}: {error}: fetch both again, or "
                        "choose another model") from error
    return Found(config, channels, side, classes, tensors)


def dit_arguments(diffusers: Any, described: dict[str, Any], path: Path) -> dict[str, Any]:
    """All arguments of the DiT, defaults included, as JSON has them.

    Raises:
        DataError: there are some that the DiT has not, and that are no defaults of the class which
            DiT's configurations named before.
    """
    own = defaults(diffusers.DiTTransformer2DModel)
    before = defaults(diffusers.Transformer2DModel)
    before_dit = described["_class_name"] == DIT_BEFORE
    require_known(described, set(own) | (set(before) if before_dit else set()), path)
    if (norm := described.get("norm_type", None if before_dit else DIT_NORM)) != DIT_NORM:
        raise DataError(f"{path}: a {described['_class_name']} with norm_type {str(norm)[:100]} is "
                        f"no DiT, which has {DIT_NORM}: choose another model")
    for name in sorted((before.keys() - own.keys()) & described.keys()):
        if described[name] not in (before[name], False, None):
            raise DataError(f"{path}: {name}: {str(described[name])[:100]} is not supported: "
                            "choose another model")
    return own | {name: value for name, value in described.items() if name in own}


def defaults(kind: Any) -> dict[str, Any]:
    """The arguments of a class of diffusers, each with its default."""
    parameters = inspect.signature(kind.__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name != "self"}
