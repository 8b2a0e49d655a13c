"""Ending child processes together with all that they have started."""

import os
import signal
import subprocess
import time

POLL_S = 0.05


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
