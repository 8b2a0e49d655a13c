"""Linear evolution of the levels of a network: A of 2×2 blocks at every level.

After Hierarchical Koopman Diffusion (arXiv:2510.12220, appendix D.4): the channels of a level come
in pairs, whose blocks are [[α, β], [−β, α]]: decay or growth by α and rotation by β. A starts at
zero, so that evolution starts as the identity.
"""

from collections.abc import Sequence
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from kdm_core.compute import full_precision
from kdm_core.config import Config

SPEED = 10.0
"""How much faster modes move than weights do, which Adam moves by the same length in every step.

They start at 0 and have to come to the order of 1.
"""


class LevelsConfig(Config):
    """How levels evolve.

    Attributes:
        kind: an operator for each tensor that the decoder is given (`skips`), one for all tensors
            of a shape (`resolutions`), or A = 0 for all times (`none`), which leaves plain
            distillation.
        per_pixel: whether each pixel has modes of its own, as in the paper, or all share them.
    """

    kind: Literal["skips", "resolutions", "none"] = "skips"
    per_pixel: bool = True


class LevelsOperator(nn.Module):
    """z → exp(τA) z of levels (B, C, …), C/2 blocks each; an odd last channel stays as it is.

    Channel j and channel j + C/2 are the two of block j.

    Attributes:
        shapes: (C, …) of the levels.
        groups: for each level, the number of its operator.
        modes: (…, C/2) of the operators: channels last, as the levels lie in memory.
        alpha, beta: `decay` and `rotation` of all operators one after the other, divided by
            SPEED, in two vectors, so that their exponentials are a few operations whatever the
            number of levels.
    """

    def __init__(self, config: LevelsConfig, shapes: Sequence[torch.Size]) -> None:
        super().__init__()
        self.shapes = [tuple(shape) for shape in shapes]
        own = (list(dict.fromkeys(self.shapes)) if config.kind == "resolutions" else self.shapes)
        self.groups = [own.index(shape) if config.kind == "resolutions" else number
                       for number, shape in enumerate(self.shapes)]
        self.modes = [] if config.kind == "none" else [
            (*(shape[1:] if config.per_pixel else [1] * len(shape[1:])), shape[0] // 2)
            for shape in own]
        self.sizes = [prod(modes) for modes in self.modes]
        self.alpha = nn.Parameter(torch.zeros(sum(self.sizes)))
        self.beta = nn.Parameter(torch.zeros(sum(self.sizes)))
        if not self.modes:
            self.requires_grad_(False)

    @property
    def decay(self) -> Tensor:
        """α (m,), below 0 for modes that shrink."""
        return SPEED * self.alpha

    @property
    def rotation(self) -> Tensor:
        """β (m,)."""
        return SPEED * self.beta

    def forward(self, levels: Sequence[Tensor], duration: Tensor | float) -> list[Tensor]:
        """exp(τA) of levels (B, C, …) each.

        Args:
            duration: τ, one for all or one for each of the batch (B,).
        """
        if not self.modes:
            return list(levels)
        factors = self.factors(duration)
        return [evolve(level, *factors[group])
                for level, group in zip(levels, self.groups, strict=True)]

    def factors(self, duration: Tensor | float) -> list[tuple[Tensor, Tensor]]:
        """exp(ατ) cos(βτ) and exp(ατ) sin(βτ) of every operator, (1 or B, C/2, …) each."""
        with full_precision(self.alpha.device):
            tau = torch.as_tensor(duration, dtype=self.alpha.dtype, device=self.alpha.device)
            tau = tau.reshape(-1, 1)
            growth, angle = torch.exp(tau * self.decay), tau * self.rotation
            cosines, sines = growth * angle.cos(), growth * angle.sin()
        return list(zip(self.of_operators(cosines), self.of_operators(sines), strict=True))

    def of_operators(self, values: Tensor) -> list[Tensor]:
        """Values (n, m) of all modes as (n, C/2, …) of each operator."""
        return [part.reshape(len(values), *modes).movedim(-1, 1)
                for part, modes in zip(torch.split(values, self.sizes, dim=1), self.modes,
                                       strict=True)]

    @torch.no_grad()
    def eigenvalues(self) -> Tensor:
        """Of exp(A), two for every block: (2m,) complex, on the CPU."""
        one = torch.polar(self.decay.double().exp(), self.rotation.double())
        return torch.cat([one, one.conj()]).to(torch.complex64).cpu()


def evolve(level: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Blocks [[cos, sin], [−sin, cos]] on the channel pairs of a level (B, C, …)."""
    half = cos.shape[1]
    paired = level if 2 * half == level.shape[1] else level[:, : 2 * half]
    own = torch.cat([cos, cos], dim=1).to(level.dtype)
    others = torch.cat([sin, -sin], dim=1).to(level.dtype)
    # The partners of all channels at once: to cut the level in two takes four times as long.
    evolved = torch.addcmul(paired * own, paired.roll(half, 1), others)
    return evolved if paired is level else torch.cat([evolved, level[:, 2 * half :]], dim=1)
