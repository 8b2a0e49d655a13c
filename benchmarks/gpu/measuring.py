"""Time, operations and memory of work on a device that is given it ahead of time."""

import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

LEAST_RUNS = 3


def machine(device: torch.device) -> dict[str, Any]:
    """What every figure is to be read with."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return {"device": f"{device.type}: {name}", "torch": torch.__version__}


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def once(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run: of the first one, with all that is translated and chosen for it."""
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start


def seconds_of(run: Callable[[], object], device: torch.device, seconds: float) -> float:
    """The median time of a run, of as many as fit in `seconds`, and of one at least if that is 0.

    The first run of all is the caller's: it takes longer.
    """
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < (LEAST_RUNS if seconds else 1) or time.perf_counter() < end:
        found.append(once(run, device))
    return statistics.median(found)


def peak_flops(device: torch.device, rows: int, seconds: float) -> float:
    """Operations a second of one large product of bfloat16 matrices: what the device can do here,
    at the clock and temperature of this run, which is less than its table says."""
    a, b = (torch.randn(rows, rows, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)

    def multiply() -> None:
        torch.mm(a, b, out=product)

    multiply()
    return 2 * rows**3 / seconds_of(multiply, device, min(seconds, 2.0))


def flops_of(run: Callable[[], object]) -> int:
    """Operations of matrix products and convolutions in a run that is not compiled."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def forget_memory(device: torch.device) -> None:
    """Begin a new measurement of memory, with none held for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def most_memory(device: torch.device) -> float | None:
    """Gigabytes that tensors took at most since `forget_memory`; None where nobody counts them."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
