"""The input itself: with it for encoders and decoder a student is dynamic mode decomposition."""

from math import prod
from typing import Literal

from torch import Tensor

from kdm_core.config import Config
from kdm_core.errors import KDMError
from kdm_core.networks.base import Network


class IdentityConfig(Config):
    """No network: the numbers of the input, in the shape of the output."""

    kind: Literal["identity"]


class Identity(Network):
    """See `IdentityConfig`. Time and labels change nothing."""

    def __init__(
        self,
        config: IdentityConfig,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        timed: bool = False,
        num_classes: int = 0,
    ) -> None:
        """
        Raises:
            KDMError: input and output have different numbers of values.
        """
        super().__init__()
        if prod(in_shape) != prod(out_shape):
            raise KDMError(f"kind: identity keeps all {prod(in_shape)} values of its input, but "
                           f"{prod(out_shape)} are wanted; set latent to the size of a sample")
        self.out_shape = out_shape

    def forward(
        self, x: Tensor, time: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        return x.reshape(len(x), *self.out_shape)
