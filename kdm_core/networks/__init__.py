"""Networks: maps between arrays, optionally conditioned on a time and a class label."""

from typing import Annotated

import torch
from pydantic import Field

from kdm_core.networks.base import Network
from kdm_core.networks.dhariwal_unet import DhariwalUNet, DhariwalUNetConfig
from kdm_core.networks.diffusers_dit import DiffusersDiT, DiffusersDiTConfig
from kdm_core.networks.diffusers_unet import DiffusersUNet, DiffusersUNetConfig
from kdm_core.networks.edm2_unet import EDM2UNet, EDM2UNetConfig
from kdm_core.networks.get import GET, GETConfig
from kdm_core.networks.identity import Identity, IdentityConfig
from kdm_core.networks.mlp import MLP, MLPConfig
from kdm_core.networks.module import ModuleNetwork, ModuleNetworkConfig
from kdm_core.networks.song_unet import SongUNet, SongUNetConfig
from kdm_core.networks.torchcfm_unet import TorchCFMUNet, TorchCFMUNetConfig
from kdm_core.networks.transformer import Transformer, TransformerConfig
from kdm_core.networks.unet import UNet, UNetConfig

OwnNetwork = (MLPConfig | UNetConfig | SongUNetConfig | DhariwalUNetConfig | EDM2UNetConfig
              | TransformerConfig | GETConfig)
NetworkConfig = Annotated[OwnNetwork | IdentityConfig, Field(discriminator="kind")]
"""The networks of this package: what students can be made of."""
ForeignNetwork = (DiffusersUNetConfig | DiffusersDiTConfig | TorchCFMUNetConfig
                  | ModuleNetworkConfig)
AnyNetworkConfig = Annotated[OwnNetwork | ForeignNetwork, Field(discriminator="kind")]
"""Those with weights and the networks of others: what teachers can be made of."""

__all__ = ["MLP", "AnyNetworkConfig", "DhariwalUNetConfig", "EDM2UNetConfig", "GETConfig",
           "IdentityConfig", "MLPConfig", "Network", "NetworkConfig", "OwnNetwork",
           "SongUNetConfig", "TransformerConfig", "UNetConfig", "build_network", "is_spatial"]

NETWORKS: dict[str, type[Network]] = {
    "mlp": MLP,
    "identity": Identity,
    "unet": UNet,
    "song_unet": SongUNet,
    "dhariwal_unet": DhariwalUNet,
    "edm2_unet": EDM2UNet,
    "transformer": Transformer,
    "get": GET,
    "diffusers_unet": DiffusersUNet,
    "diffusers_dit": DiffusersDiT,
    "torchcfm_unet": TorchCFMUNet,
    "module": ModuleNetwork,
}


def build_network(
    config: AnyNetworkConfig | IdentityConfig,
    in_shape: tuple[int, ...],
    out_shape: tuple[int, ...],
    *,
    timed: bool = False,
    num_classes: int = 0,
) -> Network:
    """Build the network that a configuration describes, with fresh weights.

    Args:
        config: which network, and its size.
        in_shape, out_shape: shapes of one input and one output, without the batch.
        timed: whether it takes a time (or noise level) as a second input.
        num_classes: 0 for a network that takes no labels.

    Raises:
        KDMError: the network cannot map between these shapes.
    """
    network = NETWORKS[config.kind](config, in_shape, out_shape, timed, num_classes)
    if isinstance(config, ForeignNetwork):
        return network
    # Weights in the layout in which our networks keep their activations are not copied at each use.
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def is_spatial(config: AnyNetworkConfig | IdentityConfig) -> bool:
    """Whether a network maps images to images of the same height and width."""
    return not isinstance(config, MLPConfig | IdentityConfig)
