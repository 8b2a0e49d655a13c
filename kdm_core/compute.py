"""Devices, precision and randomness: the same path on CPU, CUDA and MPS."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import numpy as np
import torch

from kdm_core.errors import KDMError

Precision = Literal["auto", "fp32", "bf16"]


def is_worker() -> bool:
    """Whether torchrun started this program, as one process of several or of one."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def names_device(name: str) -> bool:
    """Whether a name is `auto` or that of a device on which can be computed, here or elsewhere."""
    try:
        return name == "auto" or torch.device(name).type != "meta"
    except RuntimeError:
        return False


def resolve_device(name: str = "auto") -> torch.device:
    """The named device, or for `auto` the best one there is.

    Raises:
        KDMError: the device is not available on this machine.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    if not names_device(name):
        raise KDMError(f"'{name}' is no device; it may be auto, cpu, cuda (an NVIDIA or AMD GPU), "
                       "cuda:1 (the second one) or mps (Apple's)", field="device")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise KDMError(f"'{name}' is not available here ({error})", field="device") from error
    return device


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Within it autocast is off on a device."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def has_native_bf16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products are done in hardware, and therefore faster than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """`auto` means bf16 where the hardware has it, fp32 elsewhere."""
    if precision == "auto":
        return "bf16" if has_native_bf16(device) else "fp32"
    return precision


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """A context in which matrix products and convolutions run in the given precision."""
    if resolve_precision(precision, device) == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def state_dtype(device: torch.device) -> torch.dtype:
    """The dtype of ODE states: float64 as in EDM, float32 on MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A context in which torch's global generator is that of `seed`; its state is put back after.

    Initial weights and dropout are drawn from it, with no way to give them another.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def step_generator(device: torch.device, seed: int, step: int) -> torch.Generator:
    """The random numbers of one training step, a function of (seed, step) alone.

    A run that is killed and resumed therefore draws what the undisturbed run would have drawn,
    with no generator state in the checkpoint.
    """
    generator = torch.Generator(device)
    generator.manual_seed(hashed_seed(seed, step))
    return generator


def dropout_seed(seed: int, step: int) -> int:
    """Seed of the global generator in one training step: independent of `step_generator`'s."""
    return hashed_seed(seed, step, 1)


def hashed_seed(*numbers: int) -> int:
    """Numbers that are not negative as one seed of 64 bits."""
    # Hashed, not packed: torch's CPU generator looks at the low 32 bits of its seed only.
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
