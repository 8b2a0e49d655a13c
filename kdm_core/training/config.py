"""How long, on what batches and how fast a network is trained."""

from typing import Literal

from pydantic import Field

from kdm_core.compute import Precision
from kdm_core.config import Config


class TrainingConfig(Config):
    """One optimisation run.

    Attributes:
        steps: optimiser steps.
        batch: samples a step.
        lr: learning rate at its highest (Adam, betas 0.9 and 0.999).
        warmup: steps over which the rate rises linearly from 0.
        schedule: `constant` after the warm-up, or `cosine` down to 0 at the last step.
        clip: gradients are scaled down to at most this norm; 0 leaves them.
        ema: decay of the exponential moving average whose weights are kept.
        precision: of matrix products; `auto` is bf16 where the hardware has it.
        checkpoint_every: steps between checkpoints, from which a killed run goes on.
        log_every: steps between points of the training curves.
    """

    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    lr: float = Field(3e-4, gt=0)
    warmup: int = Field(0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    clip: float = Field(0.0, ge=0)
    ema: float = Field(0.999, ge=0, lt=1)
    precision: Precision = "auto"
    checkpoint_every: int = Field(1000, ge=1)
    log_every: int = Field(50, ge=1)
