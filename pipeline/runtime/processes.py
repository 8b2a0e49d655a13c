"""Ending child processes together with all that they have started."""

import os
import signal
import subprocess
import time
from contextlib import suppress

import psutil

POLL_S = 0.05
SHELLS = ("sh", "dash", "bash", "zsh", "ksh", "fish")


def ask_programs(process: subprocess.Popen[bytes]) -> bool:
    """Ask the programs that `process` runs to end; tell whether there were any.

    They alone are asked, and not the whole group: they know what to finish, and tell those that
    work for them.
    """
    return any([ask(program) for program in programs(process)])


def programs(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """What a process has started and has not ended, behind the shells that were started for it."""
    if process.poll() is not None:
        return []
    try:
        return [behind_shells(child) for child in psutil.Process(process.pid).children()]
    except psutil.NoSuchProcess:
        return []


def behind_shells(process: psutil.Process) -> psutil.Process:
    """The program for which a shell waits: some give way to their only command, some do not."""
    with suppress(psutil.NoSuchProcess):  # it has just ended
        while process.name() in SHELLS and (below := process.children()):
            process = below[0]
    return process


def ask(process: psutil.Process) -> bool:
    """Ask a process to end; tell whether it was still there."""
    try:
        process.terminate()
    except psutil.NoSuchProcess:
        return False
    return True


def stop_group(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """End all processes of the group that `process` leads; do nothing if none is left.

    They are asked first, and killed where they are still there after `grace_s` seconds.
    """
    deadline = time.monotonic() + grace_s
    signal_group(process, signal.SIGTERM)
    while signal_group(process, 0):
        if time.monotonic() > deadline:
            signal_group(process, signal.SIGKILL)
            break
        time.sleep(POLL_S)
    process.wait()


def signal_group(process: subprocess.Popen[bytes], number: int) -> bool:
    """Send a signal to the group (0: none); tell whether there is anyone in it."""
    process.poll()  # a leader that has ended counts until it is waited for
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):  # macOS refuses where only zombies are left
        return False
    return True
