"""Teachers of random weights."""

from typing import Any

import numpy as np

from kdm_core.networks import MLPConfig
from kdm_core.samples import SampleSpec
from kdm_core.teachers.denoiser import Denoiser, DenoiserConfig
from kdm_core.teachers.preconditioning import DiscretePreconditioning

MLP = MLPConfig(kind="mlp", width=8, blocks=1)
PLANE = SampleSpec(kind="points", shape=[2])
BETAS = np.linspace(1e-4, 0.02, 1000)  # DDPM's linear schedule
ALPHAS_CUMPROD = np.cumprod(1 - BETAS)


def discrete(alphas: Any = ALPHAS_CUMPROD) -> Denoiser:
    return Denoiser(DenoiserConfig(
        kind="denoiser", network=MLP,
        preconditioning=DiscretePreconditioning(kind="discrete", prediction="epsilon",
                                                alphas_cumprod=list(map(float, alphas)))), PLANE)
