"""Networks: maps between arrays, optionally conditioned on a time and a class label."""

from typing import Annotated

from pydantic import Field

from kdm_core.networks.base import Network
from kdm_core.networks.mlp import MLP, MLPConfig
from kdm_core.networks.unet import UNet, UNetConfig

NetworkConfig = Annotated[MLPConfig | UNetConfig, Field(discriminator="kind")]

__all__ = ["MLP", "MLPConfig", "Network", "NetworkConfig", "UNet", "UNetConfig", "build_network"]


def build_network(
    config: NetworkConfig,
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
    if isinstance(config, MLPConfig):
        return MLP(config, in_shape, out_shape, timed, num_classes)
    return UNet(config, in_shape, out_shape, timed, num_classes)
