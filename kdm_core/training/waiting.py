"""How much of a training's time its device has nothing to do."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Waiting:
    """Measures the time between steps: what the device waits for the host, data included.

    A GPU is given work ahead of time, so there the time counts that it is idle between the last
    operation of a step and the first one of the next, as it sees it itself; what it waits for the
    host within a step is not seen. On other devices it is the time that the host spends between
    steps. Validation and checkpoints are left out.
    """

    def __init__(self, device: torch.device) -> None:
        self.events = device.type == "cuda"
        self.waited_s = self.measured_s = 0.0
        self._marks: list[torch.cuda.Event | float] = []

    @property
    def share(self) -> float:
        """Time waited as a share of the time measured, in [0, 1]."""
        return self.waited_s / self.measured_s if self.measured_s else 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """A context for one step."""
        self._mark()
        yield
        self._mark()

    def pause(self) -> None:
        """Count the steps since the last pause; the device has done all of them."""
        for index in range(1, len(self._marks)):
            seconds = self._between(self._marks[index - 1], self._marks[index])
            self.measured_s += seconds
            self.waited_s += 0.0 if index % 2 else seconds
        self._marks = []

    def _mark(self) -> None:
        if self.events:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    @staticmethod
    def _between(first: torch.cuda.Event | float, second: torch.cuda.Event | float) -> float:
        if isinstance(first, float) and isinstance(second, float):
            return second - first
        assert isinstance(first, torch.cuda.Event) and isinstance(second, torch.cuda.Event)
        # The device may have got to the mark without the host's knowing.
        second.synchronize()
        return float(first.elapsed_time(second)) / 1000
