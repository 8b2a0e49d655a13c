"""Progress with rate and time left, as a bar on a terminal and as lines in a log."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

LINE_EVERY = 5.0


class Progress:
    """Counts things done. Use as a context manager."""

    def __init__(self, name: str, total: int, unit: str, done: int = 0) -> None:
        """`done` of `total` were done by an earlier run and do not count for the rate."""
        self.name, self.total, self.unit, self.initial, self.done = name, total, unit, done, done
        self.started = self.shown = time.monotonic()
        self.note = ""
        self.bar = (
            tqdm(desc=name, total=total, unit=unit, initial=done, dynamic_ncols=True)
            if sys.stderr.isatty() else None
        )

    def __enter__(self) -> "Progress":
        return self

    def update(self, count: int, note: str = "") -> None:
        """`count` more are done; `note` is a figure to show beside them."""
        self.done += count
        self.note = note or self.note
        if self.bar is not None:
            self.bar.set_postfix_str(self.note, refresh=False)
            self.bar.update(count)
        elif time.monotonic() - self.shown >= LINE_EVERY or self.done == self.total:
            self.print_line()

    def print_line(self) -> None:
        self.shown = time.monotonic()
        print(tqdm.format_meter(self.done, self.total, self.shown - self.started, ncols=0,
                                prefix=self.name, unit=self.unit, initial=self.initial,
                                postfix=self.note or None), file=sys.stderr, flush=True)

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
