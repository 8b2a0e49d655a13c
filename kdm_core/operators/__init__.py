"""Linear operators that carry the latent of a noise to the latent of its sample (eq. 6)."""

from typing import Annotated

from pydantic import Field

from kdm_core.operators.base import KoopmanOperator
from kdm_core.operators.continuous import ContinuousConfig, ContinuousOperator
from kdm_core.operators.dense import DenseConfig, DenseOperator
from kdm_core.operators.factorised import FactorisedConfig, FactorisedOperator
from kdm_core.operators.identity import IdentityConfig, IdentityOperator
from kdm_core.operators.spectrum import SpectrumConfig

OperatorConfig = Annotated[
    DenseConfig | FactorisedConfig | ContinuousConfig | IdentityConfig,
    Field(discriminator="kind"),
]

__all__ = ["ContinuousConfig", "DenseConfig", "FactorisedConfig", "IdentityConfig",
           "KoopmanOperator", "OperatorConfig", "SpectrumConfig", "build_operator"]

OPERATORS: dict[str, type[KoopmanOperator]] = {
    "dense": DenseOperator,
    "factorised": FactorisedOperator,
    "continuous": ContinuousOperator,
    "identity": IdentityOperator,
}


def build_operator(config: OperatorConfig, dim: int) -> KoopmanOperator:
    """The operator that a configuration describes, on latents of `dim` numbers."""
    return OPERATORS[config.kind](config, dim)  # type: ignore[arg-type]
