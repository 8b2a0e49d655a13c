"""Where a training is, in plain text, for those who have no program around the library."""

import sys
import time

LINE_EVERY_S = 5.0


class Progress:
    """Lines on standard error: one that is written over on a terminal, one now and then elsewhere.

    Attributes:
        note: a figure to show beside them.
    """

    def __init__(self, total: int) -> None:
        """`total`: steps."""
        self.total, self.note = total, ""
        self.terminal = sys.stderr.isatty()
        self.start(0)

    def start(self, done: int) -> None:
        """So many steps were done by an earlier run, and do not count for the rate."""
        self.done = self.earlier = done
        self.started = time.monotonic()
        self.shown = -LINE_EVERY_S

    def reach(self, done: int) -> None:
        """So many steps are done in all."""
        self.done = done
        now = time.monotonic()
        if now - self.shown >= (0.1 if self.terminal else LINE_EVERY_S) or done == self.total:
            self.shown = now
            end = "\n" if done == self.total or not self.terminal else ""
            begin = "\r\x1b[K" if self.terminal else ""
            print(begin + self.line(now - self.started), end=end, file=sys.stderr, flush=True)

    def line(self, seconds: float) -> str:
        """After so many seconds."""
        rate = (self.done - self.earlier) / max(seconds, 1e-9)
        left = f", {(self.total - self.done) / rate:,.0f} s left" if rate else ""
        return (f"{self.done:,} of {self.total:,} steps ({self.done / self.total:.0%}), "
                f"{rate:,.1f} a second{left}{f', {self.note}' if self.note else ''}")
