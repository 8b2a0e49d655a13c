"""Waiting for what other processes do."""

import socket
import time
from collections.abc import Callable


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_until(
    ready: Callable[[], bool], limit_s: float, said: Callable[[], str] = str, poll_s: float = 0.005
) -> None:
    """Wait for something that must come.

    Args:
        said: tells what went on where it does not come.

    Raises:
        AssertionError: it has not come in `limit_s` seconds.
    """
    limit = time.monotonic() + limit_s
    while not ready():
        if time.monotonic() > limit:
            raise AssertionError(f"nothing happened in {limit_s:g} s: {said()}")
        time.sleep(poll_s)
