"""`direct`: plain knowledge distillation (Luhman & Luhman 2021, arXiv:2101.02388).

One network from noise to sample, with no operator between. It learns of states between the two by
the term `endpoint`.
"""

from typing import ClassVar, Literal

from kdm_core.samples import SampleSpec
from kdm_core.students.denoising import DenoisingConfig, DenoisingStudent


class DirectConfig(DenoisingConfig):
    """Plain distillation of the teacher's denoiser."""

    kind: Literal["direct"] = "direct"
    unused: ClassVar = ("reconstruction", "latent", "latent_noise", "trajectory")

    def describe(self) -> str:
        return "plain distillation without an operator"

    def build(self, spec: SampleSpec) -> "Direct":
        return Direct(self, spec)


class Direct(DenoisingStudent):
    """See `DirectConfig`."""
