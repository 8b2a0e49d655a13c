"""Progress with rate and time left: a bar on a terminal, lines in a log, and the status file."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

from pipeline.runtime import log, status
from pipeline.runtime.status import ProgressStatus, Throughput

LINE_EVERY = 5.0


class Progress:
    """Counts things done. Use as a context manager."""

    def __init__(self, name: str, total: int, unit: str, done: int = 0) -> None:
        """`done` of `total` were done by an earlier run and do not count for the rate."""
        self.name, self.total, self.unit, self.initial, self.done = name, total, unit, done, done
        self.started = self.shown = time.monotonic()
        self.note = ""
        self.resumed = done > 0
        self.bar = (
            tqdm(desc=name, total=total, unit=unit, initial=done, dynamic_ncols=True)
            if sys.stderr.isatty() and not log.as_json() else None
        )

    def __enter__(self) -> "Progress":
        if status.current is not None:
            status.current.count(self.figures())
        self.say_where()
        return self

    def resume(self, done: int) -> None:
        """So many, it turns out, were done by an earlier run."""
        self.initial = self.done = done
        self.resumed = done > 0
        self.started = time.monotonic()
        if self.bar is not None:
            self.bar.initial = self.bar.n = done
            self.bar.unpause()

    def say_where(self) -> None:
        """Say, once, what was there and from where this goes on."""
        if self.resumed:
            self.resumed = False
            if self.bar is not None:
                self.bar.clear()
            log.say(f"{self.name}: going on after {self.initial:,} {self.unit}s of {self.total:,}")

    def reach(self, done: int) -> None:
        """So many are done in all."""
        self.update(done - self.done)

    def update(self, count: int, note: str = "") -> None:
        """`count` more are done; `note` is a figure to show beside them."""
        # Only now: a training in phases finds the complete ones first.
        self.say_where()
        self.done += count
        self.note = note or self.note
        if status.current is not None and status.current.due:
            status.current.count(self.figures())
        if self.bar is not None:
            self.bar.set_postfix_str(self.note, refresh=False)
            self.bar.update(count)
        elif time.monotonic() - self.shown >= LINE_EVERY or self.done == self.total:
            self.print_line()

    def print_line(self) -> None:
        self.shown = time.monotonic()
        meter = tqdm.format_meter(self.done, self.total, self.shown - self.started, ncols=0,
                                  prefix=self.name, unit=self.unit, initial=self.initial,
                                  postfix=self.note or None)
        log.write(meter, "progress", **self.figures().model_dump())

    def figures(self) -> ProgressStatus:
        """How far this is."""
        rate = self.rate
        return ProgressStatus(
            name=self.name, done=self.done, total=self.total, unit=self.unit,
            rate=round(rate, 3), note=self.note,
            left_s=round((self.total - self.done) / rate, 1) if rate else None)

    @property
    def rate(self) -> float:
        """Things done a second by this run."""
        return (self.done - self.initial) / max(time.monotonic() - self.started, 1e-9)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.close()
        if status.current is not None:
            status.current.count(self.figures())
            if self.done > self.initial:
                status.current.counted.append(Throughput(
                    self.name, self.unit, int(self.done - self.initial),
                    time.monotonic() - self.started))
