"""What keeps one run of a stage from spoiling another, or from being recorded as what it is not."""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdm_core.errors import KDMError
from stages import paths

WAIT_S = 15.0
POLL_S = 0.5


@contextmanager
def only_run(stage: str) -> Iterator[None]:
    """A context in which no other process of this machine runs the same stage in this folder.

    Waits for a while: the stage of a DVC that was killed ends a moment after it. The lock goes
    with its holder, however that ends.

    Raises:
        KDMError: another process runs it.
    """
    path = lock_file(stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        deadline = time.monotonic() + WAIT_S
        while not try_lock(file.fileno()):
            if time.monotonic() > deadline:
                raise KDMError(f"another process (pid {holder(stage)}) runs this stage in this "
                               "folder: wait for its end, or stop it")
            time.sleep(POLL_S)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def lock_file(stage: str) -> Path:
    """The file that whoever runs a stage has locked; it stays, so that all lock the same one."""
    return paths.WORK / "locks" / stage


def try_lock(descriptor: int) -> bool:
    """Lock an open file, unless another process has."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def holder(stage: str) -> int | None:
    """The process that runs a stage in this folder now; None if there is none on this machine."""
    try:
        with lock_file(stage).open("r") as file:
            if try_lock(file.fileno()):
                return None
            return int(file.read() or 0) or None
    except (FileNotFoundError, ValueError):
        return None


def end_with_dvc() -> None:
    """If DVC started this program, end with it: nobody would record the result of a stage whose
    DVC was killed, and the next run would find it at work."""
    if "DVC_STAGE" not in os.environ:
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Inputs:
    """What DVC records as a stage's inputs besides its data: parameters and code.

    DVC reads them when the stage has ended, so what was edited in the meantime would be recorded
    as what the result was made of.
    """

    def __init__(self, values: Any, sections: list[str], code: str) -> None:
        """
        Args:
            values: all of params.yaml, as read.
            sections: those that DVC records, `a.b` for one within another.
            code: a hash of the code that DVC records.
        """
        self.found = {name: section(values, name) for name in sections}
        self.code = code

    def require_same(self, now: "Inputs") -> None:
        """Make sure that nothing was edited.

        Raises:
            KDMError: something was.
        """
        edited = [f"params.yaml ({name})" for name, value in self.found.items()
                  if value != now.found[name]]
        if self.code != now.code:
            edited.append("the code of this stage")
        if edited:
            raise KDMError(f"{' and '.join(edited)} changed while this stage ran, so its result "
                           "would be recorded as what it is not: run again (with what there was "
                           "before, it goes on where it is)")


def section(values: Any, name: str) -> Any:
    """A section of params.yaml; None where it is missing."""
    for key in name.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return values
