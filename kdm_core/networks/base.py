"""What all networks share: the interface and the embedding of time and label."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdm_core.errors import KDMError

MOST_STAGES = 4
"""Of a chain of equal blocks: more say little more, and each costs those who look at it."""


class Enough(Exception):
    """All that was wanted of an evaluation is there."""


class Network(nn.Module):
    """A map (B, *in_shape) → (B, *out_shape), given a time (B,) and labels (B,) int64 or not.

    A label of −1, or None for all of them, is "no label": what guidance compares with.
    """

    def forward(
        self, x: Tensor, time: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        condition = self.condition(x, time, labels)
        return self.decode(self.encode(x, condition), condition)

    # A network that cannot be cut in two has a `forward` of its own.

    def condition(self, x: Tensor, time: Tensor | None, labels: Tensor | None) -> Any:
        """What the blocks of both halves are told of time and labels; arguments as of `forward`.

        Raises:
            KDMError: the network cannot be cut.
        """
        raise KDMError(f"{type(self).__name__} is a network that cannot be cut at its levels; use "
                       "mlp, transformer, unet, song_unet, dhariwal_unet or edm2_unet")

    def encode(self, x: Tensor, condition: Any) -> list[Tensor]:
        """The first half: all that the other one gets of an input, (B, C, …) a level.

        Of U-Nets the outputs of the encoder's blocks, the last of which is the bottleneck; of
        others the stream between two blocks.
        """
        raise NotImplementedError

    def decode(self, levels: list[Tensor], condition: Any) -> Tensor:
        """The second half: the output (B, *out_shape), from levels as `encode` gives them, whose
        list it may empty."""
        raise NotImplementedError

    def class_weights(self) -> list[tuple[Tensor, int]]:
        """All weights with a place for every class, and the dimension in which those lie.

        Raises:
            KDMError: nobody knows which those are.
        """
        return [(module.map_label.weight, 0) for module in self.modules()
                if isinstance(module, ConditionEmbedding) and module.map_label is not None]

    def stages(self) -> list[nn.Module]:
        """The modules whose outputs show what is made of an input, in the order of their use.

        Of U-Nets the last block of the encoder at each resolution, of others some of their blocks.

        Raises:
            KDMError: nobody knows which those are.
        """
        raise KDMError(f"{type(self).__name__} is a network of which no layers are known")

    def activations(self, evaluate: Callable[[], object]) -> list[Tensor]:
        """What `stages` give while something evaluates this network once.

        The evaluation is left as soon as the last of them is there, and `evaluate` with it.

        Returns:
            (B, C, H, W) or (B, C) each.

        Raises:
            KDMError: as `stages`.
        """
        stages, found = self.stages(), list[Tensor]()

        def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
            found.append(output)
            if len(found) == len(stages):
                raise Enough

        hooks = [stage.register_forward_hook(keep) for stage in stages]
        try:
            evaluate()
        except Enough:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def __call__(
        self, x: Tensor, time: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        return super().__call__(x, time, labels)  # type: ignore[no-any-return]


def spread(blocks: Iterable[nn.Module]) -> list[nn.Module]:
    """At most MOST_STAGES of a chain of blocks, evenly, with the last."""
    chain = list(blocks)
    count = min(len(chain), MOST_STAGES)
    return [chain[len(chain) * number // count - 1] for number in range(1, count + 1)]


def one_hot(labels: Tensor | None, num_classes: int, batch: int, like: Tensor) -> Tensor:
    """Labels (B,) as (B, num_classes) rows of zeros and a one, in the dtype and on the device of
    `like`; all zeros where there is no label."""
    if labels is None:
        return like.new_zeros(batch, num_classes)
    classes = torch.arange(num_classes, device=labels.device)
    return (labels[:, None] == classes).to(like)


class ConditionEmbedding(nn.Module):
    """Time and label as one vector (B, width); both parts are optional.

    Times are expected to be of order one; they are given sinusoidal features of geometrically
    spaced frequencies, as in Fourier embeddings of diffusion U-Nets (Tancik et al. 2020).
    """

    frequencies: Tensor

    def __init__(self, width: int, timed: bool, num_classes: int) -> None:
        super().__init__()
        self.timed = timed
        if timed:
            frequencies = torch.logspace(-1, 2, width // 2, base=10.0) * 2 * math.pi / 10
            self.register_buffer("frequencies", frequencies, persistent=False)
            self.map_time = nn.Linear(2 * (width // 2), width)
        self.map_label = nn.Embedding(num_classes, width) if num_classes else None
        self.mix = nn.Linear(width, width)

    def forward(self, time: Tensor | None, labels: Tensor | None) -> Tensor:
        parts = [self.mix.weight.new_zeros(1, self.mix.in_features)]
        if self.timed:
            assert time is not None, "this network takes a time"
            angles = time.to(torch.float32)[:, None] * self.frequencies
            parts.append(self.map_time(torch.cat([angles.cos(), angles.sin()], dim=1)))
        if self.map_label is not None and labels is not None:
            known = (labels >= 0)[:, None]
            parts.append(self.map_label(labels.clamp(min=0)) * known)
        return F.silu(self.mix(F.silu(sum(parts[1:], start=parts[0]))))


class GroupNorm(nn.GroupNorm):
    """Group normalisation, on CPUs always in float32.

    There torch's bfloat16 kernel is up to seven times slower than its float32 one where groups
    are small and channels come last.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype == torch.bfloat16:
            return super().forward(x.to(torch.float32)).to(x.dtype)
        return super().forward(x)


def dropout(x: Tensor, share: float, training: bool) -> Tensor:
    """Set a share of the values to zero while training, and scale the others up to keep the mean.

    On CPUs each value is decided by 16 random bits, so that `share` is rounded down to a multiple
    of 2^-16; torch's own draws take three times as long there.
    """
    if not training or not share or x.device.type != "cpu":
        return F.dropout(x, share, training)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = words.view(torch.int16)[: x.numel()] >= int(share * 2**16) - 2**15
    # In the memory order of x, whatever it is.
    factors = kept.as_strided(x.shape, torch.empty_like(x).stride()).to(torch.float32)
    return x * factors.mul_(1 / (1 - share)).to(x.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √c) v of (B, heads, pixels, c) each."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad:
        # The gradient of torch's fused kernel takes three to four times as long as all of this.
        with torch.autocast("cpu", enabled=False):
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            mixed: Tensor = scores.softmax(dim=-1) @ v
            return mixed
    return F.scaled_dot_product_attention(q, k, v)


def zero_init(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """Zero a layer that ends a residual branch, so that the branch starts as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
