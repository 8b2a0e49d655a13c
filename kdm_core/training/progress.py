"""Where a training is, in plain text, for those who have no program around the library."""

import sys
import time

LINE_EVERY_S = 5.0
REDRAW_EVERY_S = 0.1


class Progress:
    """Lines on standard error: one that is written over on a terminal, one now and then elsewhere.
    """

    def __init__(self, total: int) -> None:
        """`total`: steps."""
        self.total, self.figure = total, ""
        self.terminal = sys.stderr.isatty()
        self.start(0)

    def start(self, done: int) -> None:
        """So many steps were done by an earlier run, and do not count for the rate."""
        self.done = self.earlier = done
        self.started = self.shown = time.monotonic()

    def reach(self, done: int) -> None:
        """So many steps are done in all."""
        self.done = done
        pause = REDRAW_EVERY_S if self.terminal else LINE_EVERY_S
        if time.monotonic() - self.shown >= pause:
            self.show()

    def note(self, figure: str) -> None:
        """A figure to show beside them; that of the last step ends it."""
        self.figure = figure
        if self.done == self.total:
            self.show()

    def show(self) -> None:
        self.shown = time.monotonic()
        rate = (self.done - self.earlier) / max(self.shown - self.started, 1e-9)
        left = f", {(self.total - self.done) / rate:,.0f} s left" if rate else ""
        line = (f"{self.done:,} of {self.total:,} steps ({self.done / self.total:.0%}), "
                f"{rate:,.1f} a second{left}{self.figure and f', {self.figure}'}")
        written_over = self.terminal and self.done < self.total
        print(("\r\x1b[K" if self.terminal else "") + line, end="" if written_over else "\n",
              file=sys.stderr, flush=True)
