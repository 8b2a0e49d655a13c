"""What all parts of the measurement share: the device, sizes, and the form of a result."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.gpu.measuring import machine, peak_flops
from benchmarks.gpu.scale import Scale
from kdm_core.errors import KDMError
from kdm_core.training.compilation import compiler_problem

Row = dict[str, Any]
"""One result: `name`, `precision` and figures."""


class Job(NamedTuple):
    """A result that can be measured.

    Attributes:
        name: of the row.
        seconds: that it takes at most on a GPU, by which it is decided whether there is time.
        run: measures it.
    """

    name: str
    seconds: float
    run: Callable[[], Row]


class Bench:
    """The device and what is measured on it, in which sizes."""

    def __init__(self, device: torch.device, scale: Scale) -> None:
        self.device, self.scale = device, scale

    @cached_property
    def machine(self) -> dict[str, Any]:
        return machine(self.device)

    @cached_property
    def peak(self) -> float:
        """bfloat16 operations a second."""
        return peak_flops(self.device, self.scale.matrix, self.scale.seconds)

    @cached_property
    def compiler_problem(self) -> str | None:
        """Why nothing can be compiled here; None if it can."""
        return None if self.scale.trial else compiler_problem(self.device)

    def compile(self, module: nn.Module) -> None:
        """Have a module's calls translated for shapes that do not change.

        Raises:
            KDMError: nothing can be compiled here.
        """
        if self.compiler_problem:
            raise KDMError(f"torch.compile does not work here: {self.compiler_problem}")
        # Modules of the same code count as one that is translated again and again, and after the
        # eighth time torch gives up and says nothing.
        torch.compiler.reset()
        module.compile(dynamic=False)


def with_weights(module: nn.Module) -> None:
    """Give weights to layers that start at zero and would make no work of themselves."""
    for parameter in module.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
