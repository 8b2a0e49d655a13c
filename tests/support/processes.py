"""Processes that a program has started."""

from contextlib import suppress

import psutil


def spawned(pid: int) -> list[psutil.Process]:
    """The workers that a process has started."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # workers start short programs of the system
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found
