"""A stage that is asked to end (SIGTERM) finishes what is under way, and keeps it."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 143
"""128 + SIGTERM, which shells show of a program that the signal ended."""


class Stopped(SystemExit):
    """The program ends because it was asked to; what is complete is kept."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class Stop:
    """Whether the program was asked to end.

    Attributes:
        asked: set by the first signal.
    """

    def __init__(self) -> None:
        self.asked = False

    def check(self) -> None:
        """Where nothing is under way.

        Raises:
            Stopped: the program was asked to end.
        """
        if self.asked:
            raise Stopped


@contextmanager
def stoppable(say: Callable[[str], None]) -> Iterator[Stop]:
    """A context in which the first SIGTERM only asks to end, and the second ends at once.

    For the main thread. The signal is noticed between two instructions of Python, so nothing is
    written in the handler, which could interrupt another writer.
    """
    stop = Stop()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            os._exit(EXIT_CODE)
        stop.asked = True

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield stop
    except Stopped:
        say("stopped as asked: what is complete is kept, run again to go on")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
