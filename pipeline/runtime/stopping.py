"""A stage that is asked to end: by SIGTERM it finishes what is under way, and keeps it; by Ctrl-C
it ends at once, with one line."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from types import FrameType, TracebackType
from typing import NoReturn

from pipeline.runtime import log

INTERRUPTED = 130
"""128 + SIGINT, as shells show it."""
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


def end_interrupted() -> NoReturn:
    """End this program after Ctrl-C; of processes that compute together, the first one speaks."""
    if "TORCHELASTIC_RUN_ID" not in os.environ and parent_process() is None:
        log.say("stopped by Ctrl-C: what is complete is kept, the same command goes on from there")
    sys.stdout.flush()
    os._exit(INTERRUPTED)


def show_no_traceback() -> None:
    """Have Ctrl-C end this program calmly also while it still reads its code, for seconds."""
    others = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            end_interrupted()
        others(kind, error, trace)

    sys.excepthook = hook


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
