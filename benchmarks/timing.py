"""Two or more things timed in turn, so that drift of the machine hits all of them."""

import statistics
import time
from collections.abc import Callable


def rounds(
    candidates: dict[str, Callable[[], object]], count: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each candidate in each round, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for index in range(count + 1):
        for name, run in candidates.items():
            start = clock()
            run()
            if index:
                seconds[name].append(clock() - start)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> str:
    """The median of the ratios round by round, with their range."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return f"{statistics.median(ratios):.1f}× ({min(ratios):.1f} to {max(ratios):.1f})"
