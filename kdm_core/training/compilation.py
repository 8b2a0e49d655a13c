"""torch.compile where it pays and works."""

import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from kdm_core.errors import about, adapted
from kdm_core.training.config import TrainingConfig

M = TypeVar("M", bound=nn.Module)


def compiled(
    module: M, config: TrainingConfig, device: torch.device,
    say: Callable[[str], None] = adapted,
) -> M:
    """The module, whose calls torch.compile has translated if `config.compile` asks for it.

    Args:
        module: changed in place; names of weights and copies of it are as before.
        config: `compile: auto` translates on CUDA alone. On CPUs it takes one to two minutes,
            which only long trainings win back.
        device: of the module.
        say: told why, where the module is left as it is though translation was asked for.
    """
    if config.compile == "off" or (config.compile == "auto" and device.type != "cuda"):
        return module
    problem = compiler_problem(device)
    if problem:
        say(about("compile", f"torch.compile does not work here ({problem}); going on without it. "
                  "Install a C++ compiler (and Triton for a GPU), or set it to off"))
    else:
        module.compile()
    return module


def compiler_problem(device: torch.device) -> str | None:
    """Why torch.compile fails on the device, found out with one small operation; None if not."""
    # A constant of its own, so that no cache answers in the compiler's place.
    constant = time.time_ns() % 1_000_003 / 7

    def probe(x: torch.Tensor) -> torch.Tensor:
        return (x * constant).sin() + x

    try:
        x = torch.ones(64, device=device, requires_grad=True)
        torch.compile(probe)(x).sum().backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # each backend has errors of its own
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
    return None
