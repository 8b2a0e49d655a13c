"""The class-conditional transformer of diffusers (`DiTTransformer2DModel`), by that package.

DiT of Peebles & Xie 2023 (arXiv:2212.09748).
"""

from typing import Any, Literal

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from kdm_core.config import Config
from kdm_core.errors import KDMError
from kdm_core.networks.base import spread
from kdm_core.networks.foreign import build_of_diffusers
from kdm_core.networks.transformer import TokenNetwork

CLASS = "DiTTransformer2DModel"


class DiffusersDiTConfig(Config):
    """A class-conditional transformer of diffusers.

    Attributes:
        arguments: of `diffusers.DiTTransformer2DModel`, by its names.
    """

    kind: Literal["diffusers_dit"]
    arguments: dict[str, JsonValue] = {}


class DiffusersDiT(TokenNetwork):
    """See `DiffusersDiTConfig`. Takes a time in the unit that the transformer was trained with.

    "No label" is the row behind those of the classes. A learned variance, the second half of the
    transformer's channels, is left out.

    Attributes:
        label_dropout: share of the labels that diffusers leaves out in training.
    """

    def __init__(
        self,
        config: DiffusersDiTConfig,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        timed: bool = False,
        num_classes: int = 0,
    ) -> None:
        """
        Raises:
            KDMError: the package is missing, the arguments describe no transformer, or one that
                cannot map between these shapes.
        """
        super().__init__()
        self.transformer = build_of_diffusers(CLASS, config.arguments)
        made = self.transformer.config
        channels, side = made.in_channels, made.sample_size
        outputs = self.transformer.out_channels
        shape = (channels, side, side)
        if in_shape != shape or out_shape != shape or not timed or outputs not in (
                channels, 2 * channels):
            raise KDMError(f"network.kind: this diffusers_dit maps {shape} and a time to {outputs} "
                           f"channels, not {in_shape} to {out_shape}")
        if made.num_layers < 1 or side % made.patch_size:
            raise KDMError(f"network.arguments: {made.num_layers} layers of patches of "
                           f"{made.patch_size}, which must be one at least, for a side of {side}, "
                           "which they must divide")
        if made.num_embeds_ada_norm != num_classes:
            raise KDMError("network.arguments: num_embeds_ada_norm is "
                           f"{made.num_embeds_ada_norm}, for {num_classes} labels")
        self.channels, self.num_classes = channels, num_classes
        self.grid = (side // made.patch_size, side // made.patch_size)
        self.label_dropout = float(self.embedders()[0].dropout_prob)
        for embedder in self.embedders():
            # In training it drops labels by itself, which whoever trains is to do by −1.
            embedder.dropout_prob = 0.0

    def embedders(self) -> list[Any]:
        """What embeds the class in each block."""
        return [block.norm1.emb.class_embedder for block in self.transformer.transformer_blocks]

    def stages(self) -> list[nn.Module]:
        return spread(self.transformer.transformer_blocks)

    def class_weights(self) -> list[tuple[Tensor, int]]:
        return [(embedder.embedding_table.weight.detach()[: self.num_classes], 0)
                for embedder in self.embedders()]

    def forward(
        self, x: Tensor, time: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        assert time is not None, "this network takes a time"
        if labels is None:
            labels = torch.full((len(x),), -1, device=x.device)
        classes = labels.where(labels >= 0, self.num_classes)
        out: Tensor = self.transformer(x, timestep=time, class_labels=classes,
                                       return_dict=False)[0]
        return out[:, : self.channels]
