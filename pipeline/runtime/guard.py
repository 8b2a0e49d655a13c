"""What keeps one run of a stage from spoiling another, or from being recorded as what it is not."""

import fcntl
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import psutil

from kdm_core.errors import KDMError
from pipeline.runtime import paths
from pipeline.runtime.dates import CHANGED
from pipeline.runtime.plan.code import file_of

WAIT_S = 15.0
POLL_S = 0.5
DVC_MARK = "DVC_STAGE"
"""The variable in the environment of all that DVC starts."""


@contextmanager
def only_run(stage: str, say: Callable[[str], None]) -> Iterator[None]:
    """A context in which no other process runs the same stage in this folder.

    Waits for a while: the stage of a DVC that was killed ends a moment after it. The lock goes
    with its holder, however that ends. On NFS it holds between machines, too.

    Args:
        stage: as DVC calls it.
        say: told of whom it waits for.

    Raises:
        KDMError: another process runs it, or files here cannot be locked.
    """
    path = lock_file(stage)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise unusable(path, error) from error
    try:
        wait_for(descriptor, stage, say)
        yield
    finally:
        os.close(descriptor)


def wait_for(descriptor: int, stage: str, say: Callable[[str], None]) -> None:
    """Lock a stage's open file and leave a note of who has done so."""
    path, limit, waiting = lock_file(stage), time.monotonic() + WAIT_S, False
    try:
        while not try_lock(descriptor, fcntl.LOCK_EX):
            who = f"another process ({path.read_text() or 'unknown'})"
            if time.monotonic() > limit:
                raise KDMError(f"{who} runs this stage in this folder: wait for its end, or stop "
                               "it")
            if not waiting:
                say(f"{who} runs this stage in this folder: waiting up to {WAIT_S:.0f} s for its "
                    "end")
            waiting = True
            time.sleep(POLL_S)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}".encode(), 0)
    except OSError as error:
        raise unusable(path, error) from error


def lock_file(stage: str) -> Path:
    """The file that whoever runs a stage has locked; it stays, so that all lock the same one."""
    return paths.WORK / "locks" / stage


def try_lock(descriptor: int, how: int) -> bool:
    """Lock an open file, unless another process has."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unusable(path: Path, error: OSError) -> KDMError:
    return KDMError(f"{path} cannot be locked ({error.strerror}): free some space, check the "
                    "permissions, and have data/work on a file system with locks (flock)")


def holder(stage: str) -> int | None:
    """The process that runs a stage in this folder now; None if there is none."""
    try:
        with lock_file(stage).open("r") as file:
            # Shared: those who ask do not take each other for whom they look for.
            if try_lock(file.fileno(), fcntl.LOCK_SH):
                return None
            return int(file.read().split()[1])
    except (FileNotFoundError, IndexError, ValueError):  # or it is just about to write it
        return None


def is_of_dvc() -> bool:
    """Whether DVC started this program, and will record what it makes."""
    return DVC_MARK in os.environ


def end_with_dvc() -> None:
    """If DVC started this program, end with it: nobody would record the result of a stage whose
    DVC was killed, and the next run would find it at work."""
    if not is_of_dvc():
        return
    dvc = find_dvc()

    def watch() -> None:
        while dvc is not None and is_alive(dvc):
            time.sleep(POLL_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs still; one that has ended may stay in the table until it is asked."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def find_dvc() -> psutil.Process | None:
    """The DVC that started this program, through a shell or not; None if it has ended."""
    session = os.getsid(0)
    try:
        for process in psutil.Process().parents():
            # An orphan's new parent is of another session.
            if os.getsid(process.pid) != session:
                return None
            if DVC_MARK not in process.environ():
                return process
    except (psutil.Error, OSError):  # one of them has just ended
        return None
    return None


def leave() -> NoReturn:
    """End this program now, as one that succeeded.

    Python takes half a second to clean up: time in which someone could edit params.yaml after the
    last look at it and before DVC's.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class Code:
    """The code that a stage computes with, as it was when its program began.

    What was imported when the stage began stays as it was, whatever becomes of the files. What is
    imported later must not have been edited, or the result would be that of another code than its
    plan says.
    """

    def __init__(self, modules: Iterable[str]) -> None:
        """
        Args:
            modules: dotted names; others than those of the project are passed over.

        Raises:
            KDMError: some was changed since this program began to read it.
        """
        files = {name: file for name in modules if (file := file_of(name)) is not None}
        require_settled(files.values())
        main = getattr(sys.modules["__main__"], "__spec__", None)
        loaded = {*sys.modules, main.name if main is not None else ""}
        self.later = [file for name, file in files.items() if name not in loaded]

    def require_settled(self) -> None:
        """Make sure that what may have been imported later is what it was.

        Raises:
            KDMError: it is not.
        """
        require_settled(self.later)


def require_settled(code: Iterable[Path]) -> None:
    """Make sure that no code was changed since this program began to read it.

    Raises:
        KDMError: some was.
    """
    edited = [file for file in code if file.stat().st_mtime_ns != CHANGED.get(file)]
    if edited:
        raise KDMError(f"{edited[0]} changed while this stage ran: run again")
