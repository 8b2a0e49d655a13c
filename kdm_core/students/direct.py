"""`direct`: plain knowledge distillation (Luhman & Luhman 2021, arXiv:2101.02388).

One network from noise to sample, with no operator between. It learns of states between the two by
the term `endpoint`. A generative equilibrium transformer (`network: {kind: get}`) learns by all its
iterates, the last of which is the sample.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from kdm_core.losses.distances import Distance
from kdm_core.networks.get import GET, GETConfig
from kdm_core.samples import SampleSpec
from kdm_core.students.denoising import DenoisingConfig, DenoisingStudent
from kdm_core.teachers.base import Evaluate

if TYPE_CHECKING:
    from kdm_core.students.objective import Batch, LossConfig

DECAY = 0.8
"""Weight of an iterate's distance beside that of the next one (GET, published code)."""


class DirectConfig(DenoisingConfig):
    """Plain distillation of the teacher's denoiser."""

    kind: Literal["direct"] = "direct"
    unused: ClassVar = ("reconstruction", "latent", "latent_noise", "trajectory")

    def describe(self) -> str:
        return "plain distillation without an operator"

    def check(self, losses: "LossConfig") -> None:
        super().check(losses)
        if losses.endpoint and self.denoiser is not None and isinstance(
                self.denoiser.network, GETConfig):
            raise ValueError("losses.endpoint: a network of the kind get takes no time, and so no "
                             "state between noise and sample; set it to 0")

    def build(self, spec: SampleSpec) -> "Direct":
        return Direct(self, spec)


class Direct(DenoisingStudent):
    """See `DirectConfig`."""

    def terms(
        self, batch: "Batch", losses: "LossConfig", distance: Distance
    ) -> tuple[dict[str, Tensor], Tensor]:
        if not isinstance(self.network, GET):
            return super().terms(batch, losses, distance)
        made = self.iterates(batch.noise, batch.labels)
        found = distance(batch.samples, made)
        weighted = [DECAY**later * one for later, one in enumerate(reversed(found))]
        return {"prediction": sum(weighted[1:], start=weighted[0])}, made[-1]

    def iterates(self, noise: Tensor, labels: Tensor | None) -> list[Tensor]:
        """The samples (B, *shape) of all iterates of an equilibrium transformer."""
        found: list[Tensor] = []

        def evaluate(x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
            found.extend(self.network.iterates(x, labels))  # type: ignore[operator]
            return found[-1]

        def made(network: Evaluate) -> Tensor:
            state = noise * self.start_scale
            return self.denoiser.denoise_by(network, state, self.start, labels).to(torch.float32)

        last = made(evaluate)
        return [*(made(lambda *_, one=one: one) for one in found[:-1]), last]
