"""How long, on what batches and how fast a network is trained."""

from typing import Annotated, Literal

from pydantic import Field

from kdm_core.compute import Precision
from kdm_core.config import Config


class TrainingConfig(Config):
    """One optimisation run.

    Attributes:
        steps: optimiser steps.
        batch: samples a step.
        accumulate: micro-batches into which a batch is cut, to need less memory.
        optimizer: Adam, or AdamW, whose weight decay is no part of the gradient.
        lr: learning rate at its highest.
        betas: decays of the optimiser's two moments.
        weight_decay: of the optimiser.
        warmup: steps over which the rate rises linearly from 0.
        schedule: `constant` after the warm-up, or `cosine` or `linear` down to 0 at the end.
        clip: gradients are scaled down to at most this norm; 0 leaves them.
        nonfinite: what is done with gradients that are not finite: `skip` leaves out the update;
            `zero` replaces NaN by 0 and infinities by ±1e5, as the published code does.
        ema: decay of the exponential moving average whose weights are kept; it is approached as
            (1 + s) / (10 + s) at step s.
        precision: of matrix products; `auto` is bf16 where the hardware has it.
        compile: whether torch.compile translates the model; `auto` does on CUDA.
        checkpoint_every: steps between checkpoints, from which a killed run goes on.
        keep_checkpoints: how many of them are kept; where one is damaged, the one before serves.
        log_every: steps between points of the training curves.
    """

    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    accumulate: int = Field(1, ge=1)
    optimizer: Literal["adam", "adamw"] = "adam"
    lr: float = Field(3e-4, gt=0)
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(
        [0.9, 0.999], min_length=2, max_length=2)
    weight_decay: float = Field(0.0, ge=0)
    warmup: int = Field(0, ge=0)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    clip: float = Field(0.0, ge=0)
    nonfinite: Literal["skip", "zero"] = "skip"
    ema: float = Field(0.999, ge=0, lt=1)
    precision: Precision = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    checkpoint_every: int = Field(1000, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    log_every: int = Field(50, ge=1)
