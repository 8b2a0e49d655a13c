"""What a check finds, and checks that must not wait for long."""

import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Literal, NamedTuple

Level = Literal["ok", "warning", "problem"]


class Finding(NamedTuple):
    """The outcome of a check.

    Attributes:
        check: what was looked at.
        level: `problem` where runs will fail, `warning` where they may, or are slower than need be.
        text: what was found.
        advice: what to do about it; empty where there is nothing to do.
    """

    check: str
    level: Level
    text: str
    advice: str = ""


def ok(check: str, text: str) -> Finding:
    return Finding(check, "ok", text)


def warning(check: str, text: str, advice: str) -> Finding:
    return Finding(check, "warning", text, advice)


def problem(check: str, text: str, advice: str) -> Finding:
    return Finding(check, "problem", text, advice)


def within(seconds: float, attempt: Callable[[], str]) -> str:
    """What an attempt at something far away says went wrong, or that it did not answer in time.

    A thread that still waits then is left behind; it does not keep the program from ending.

    Returns:
        Empty if all went well.
    """
    answer: list[str] = []
    # In this context: Prefect's settings may be those of a part of a program.
    thread = threading.Thread(target=copy_context().run,
                              args=(lambda: answer.append(attempt()),), daemon=True)
    thread.start()
    thread.join(seconds)
    return answer[0] if answer else f"no answer within {seconds:g} s"
