"""The U-Net of torchcfm (its `UNetModelWrapper`, after guided diffusion), by that package."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from kdm_core.config import Config
from kdm_core.errors import KDMError
from kdm_core.networks.base import Network
from kdm_core.networks.foreign import require_labels


class TorchCFMArguments(Config):
    """Arguments of `torchcfm.models.unet.unet.UNetModelWrapper`, by its names.

    The defaults are those of torchcfm's CIFAR-10 example.

    Attributes:
        num_channels: channels of the first level.
        channel_mult: channels of each level, as multiples of `num_channels`.
        num_res_blocks: residual blocks a level.
        attention_resolutions: resolutions (in pixels) with self-attention.
        num_heads: attention heads of a layer, where `num_head_channels` is −1.
        num_head_channels: channels of an attention head; −1: `num_heads` heads.
        dropout: share of a residual branch's activations that training drops.
        use_scale_shift_norm: whether time and class scale and shift a block's second norm; else
            they are added before it.
        resblock_updown: whether a residual block halves and doubles the resolution; else a
            convolution does.
        use_new_attention_order: whether all heads' queries lie before all keys and values in the
            weights; else each head's queries, keys and values lie together.
    """

    num_channels: int = Field(128, ge=32, multiple_of=32)
    num_res_blocks: int = Field(2, ge=1)
    channel_mult: list[int] = Field([1, 2, 2, 2], min_length=1)
    num_heads: int = Field(4, ge=1)
    num_head_channels: int = Field(64, ge=-1)
    attention_resolutions: list[int] = Field([16], min_length=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_new_attention_order: bool = False


class TorchCFMUNetConfig(TorchCFMArguments):
    """A U-Net of torchcfm, with those arguments."""

    kind: Literal["torchcfm_unet"]


class TorchCFMUNet(Network):
    """See `TorchCFMUNetConfig`. Maps (B, C, H, W) to the same shape; takes a time in [0, 1].

    A class-conditional one needs labels: it knows no "no label".
    """

    def __init__(
        self,
        config: TorchCFMUNetConfig,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        timed: bool = False,
        num_classes: int = 0,
    ) -> None:
        """
        Raises:
            KDMError: the package is missing, or the network cannot map between these shapes.
        """
        super().__init__()
        try:
            from torchcfm.models.unet.unet import UNetModelWrapper
        except ImportError as error:
            raise KDMError("network.kind: torchcfm_unet needs the package torchcfm "
                           f"(pip install 'kdm-distill[torchcfm]'): {error}") from error
        halvings = len(config.channel_mult) - 1
        if (len(in_shape) != 3 or in_shape != out_shape or in_shape[1] != in_shape[2]
                or in_shape[1] % 2**halvings or not timed):
            raise KDMError(f"network.kind: a torchcfm_unet of {halvings + 1} levels is for the "
                           f"velocity of square images whose side is divisible by {2**halvings}; "
                           f"it cannot map {in_shape} to {out_shape}")
        self.num_classes, self.blocks = num_classes, config.num_res_blocks
        arguments = config.model_dump(exclude={"kind", "attention_resolutions"})
        resolutions = ",".join(str(side) for side in config.attention_resolutions)
        try:
            self.unet = UNetModelWrapper(
                dim=in_shape, attention_resolutions=resolutions, class_cond=num_classes > 0,
                num_classes=num_classes, **arguments)
        except (AssertionError, ValueError, ZeroDivisionError) as error:
            raise KDMError(f"network: torchcfm builds no U-Net of these arguments: {error}"
                           ) from error

    def stages(self) -> list[nn.Module]:
        # The first entry is a convolution; between two resolutions there is another one.
        return list(self.unet.input_blocks[self.blocks :: self.blocks + 1])

    def class_weights(self) -> list[tuple[Tensor, int]]:
        return [(self.unet.label_emb.weight, 0)] if self.num_classes else []

    def forward(
        self, x: Tensor, time: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        out: Tensor = self.unet(time, x, y=require_labels(labels, self.num_classes))
        return out
