"""The unconditional or class-conditional U-Net of diffusers (`UNet2DModel`), by that package."""

from typing import Literal

from pydantic import JsonValue
from torch import Tensor, nn

from kdm_core.config import Config
from kdm_core.errors import KDMError
from kdm_core.networks.base import Network
from kdm_core.networks.foreign import build_of_diffusers, require_labels


class DiffusersUNetConfig(Config):
    """A U-Net of diffusers.

    Attributes:
        arguments: of `diffusers.UNet2DModel`, by its names.
    """

    kind: Literal["diffusers_unet"]
    arguments: dict[str, JsonValue] = {}


class DiffusersUNet(Network):
    """See `DiffusersUNetConfig`. Takes a time in the unit that the U-Net was trained with.

    A class-conditional one needs labels: it knows no "no label".
    """

    def __init__(
        self,
        config: DiffusersUNetConfig,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        timed: bool = False,
        num_classes: int = 0,
    ) -> None:
        """
        Raises:
            KDMError: the package is missing, the arguments describe no U-Net, or one that cannot
                map between these shapes.
        """
        super().__init__()
        self.unet = build_of_diffusers("UNet2DModel", config.arguments)
        made = self.unet.config
        channels = made.in_channels, made.out_channels
        if len(in_shape) != 3 or channels != (in_shape[0], out_shape[0]) or not timed:
            raise KDMError(f"network.kind: this diffusers_unet maps {channels[0]} channels and a "
                           f"time to {channels[1]} channels, not {in_shape} to {out_shape}")
        if (made.num_class_embeds or 0) != num_classes or made.class_embed_type is not None:
            raise KDMError(f"network.arguments: num_class_embeds is {made.num_class_embeds} and "
                           f"class_embed_type {made.class_embed_type}, for {num_classes} labels")
        halvings = len(made.down_block_types) - 1
        if any(side % 2**halvings for side in in_shape[1:]):
            raise KDMError(f"network.arguments: {halvings + 1} levels need a height and width "
                           f"divisible by {2**halvings}, found {in_shape[1:]}")
        self.integer_times = made.time_embedding_type == "learned"
        self.num_classes = num_classes

    def stages(self) -> list[nn.Module]:
        # The blocks themselves end with what leads to the next resolution.
        return [(getattr(block, "attentions", None) or block.resnets)[-1]
                for block in self.unet.down_blocks]

    def class_weights(self) -> list[tuple[Tensor, int]]:
        return [(self.unet.class_embedding.weight, 0)] if self.num_classes else []

    def forward(
        self, x: Tensor, time: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        assert time is not None, "this network takes a time"
        out: Tensor = self.unet(x, time.long() if self.integer_times else time,
                                require_labels(labels, self.num_classes), return_dict=False)[0]
        return out
