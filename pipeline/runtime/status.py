"""How far a run of a stage is, in data/work/status/STAGE.json, for whoever wants to know.

A killed stage leaves a file that says "running"; `guard.holder` tells whether it is.
Imports neither torch nor the parameters, so that readers answer at once.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from kdm_core.errors import printable
from pipeline.runtime import log, paths

EVERY_S = 1.0
STOPPED = (130, 143)
"""Exit codes of a program that was asked to end."""

State = Literal["running", "done", "failed", "stopped"]


class ProgressStatus(BaseModel):
    """One thing that is counted.

    Attributes:
        done, total: of `unit`, those of earlier runs included.
        rate: a second, of this run.
        left_s: seconds until all are done; None while nothing is known of the rate.
        note: a figure that is shown beside it.
    """

    name: str
    done: int
    total: int
    unit: str
    rate: float
    left_s: float | None = None
    note: str = ""


class Status(BaseModel):
    """A run of a stage.

    Attributes:
        pid, host: the process that writes this.
        started, updated: ISO times, UTC.
        work: the key of the unfinished work that it goes on with, once that is known.
        earlier_s: seconds that earlier runs, which did not come to their end, spent on that work.
        elapsed_s: seconds of this run.
        took_s: seconds that this stage took when it last came to its end before.
        progress: what was counted last.
        error: why it failed.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    stage: str
    pid: int
    host: str
    state: State
    started: str
    updated: str
    work: str | None = None
    earlier_s: float = 0.0
    elapsed_s: float = 0.0
    took_s: float | None = None
    progress: ProgressStatus | None = None
    error: str | None = None

    @property
    def complete_s(self) -> float | None:
        """Seconds that the stage took when it last came to its end."""
        return self.earlier_s + self.elapsed_s if self.state == "done" else self.took_s


class Throughput(NamedTuple):
    """What was counted in a run, and in how many seconds."""

    name: str
    unit: str
    done: int
    seconds: float


def status_file(stage: str, project: Path = Path()) -> Path:
    return project / paths.WORK / "status" / f"{stage}.json"


def read_status(project: Path, stage: str) -> Status | None:
    """The last run of a stage.

    None if it never ran here, and also if the file is damaged or cannot be read: it only informs,
    and the next run writes it anew.
    """
    try:
        return Status.model_validate_json(status_file(stage, project).read_bytes())
    except (OSError, ValidationError):
        return None


class Recorder:
    """Keeps the status file of the run of a stage that this process is.

    It informs and nothing depends on it, so a disk that is full must not end work that can go on:
    what cannot be written is said once, and tried again with the next figures. For the same reason
    the file is replaced without waiting for the disk.

    Attributes:
        counted: what came to its end in this run.
    """

    def __init__(self, stage: str, writes: bool = True) -> None:
        """`writes`: whether it is this process, of those that compute together, that does."""
        now, before = timestamp(), read_status(Path(), stage)
        self.status = Status(stage=stage, pid=os.getpid(), host=socket.gethostname(),
                             state="running", started=now, updated=now)
        if before is not None:
            self.status.took_s = before.complete_s
            if before.state != "done":
                self.status.work = before.work
                self.status.earlier_s = round(before.earlier_s + before.elapsed_s, 2)
        self.counted: list[Throughput] = []
        self.writes, self.warned = writes, False
        self.began = self.written = time.monotonic()

    def begin_work(self, key: str) -> None:
        """Say which work this run is about: what earlier runs spent on other work is not its."""
        if self.status.work != key:
            self.status.work, self.status.earlier_s = key, 0.0

    @property
    def due(self) -> bool:
        """Whether it is time to write again."""
        return time.monotonic() - self.written >= EVERY_S

    def count(self, progress: ProgressStatus) -> None:
        """Take note of progress."""
        self.status.progress = progress
        self.write()

    def end(self, state: State, error: str | None = None) -> None:
        """Say how the run ended; with what processes that it has started found, if any did."""
        found = read_status(Path(), self.status.stage)
        if found is not None and found.pid != self.status.pid:
            if found.work is not None:
                self.begin_work(found.work)
            self.status.progress = found.progress
            error = found.error or error
        self.status.state, self.status.error = state, error if state == "failed" else None
        self.write()

    def end_worker(self, error: str) -> None:
        """Leave word of why a process that torchrun started failed, unless another one has."""
        found = read_status(Path(), self.status.stage)
        if found is not None and found.error is None:
            self.status = found.model_copy(update={"pid": os.getpid(), "error": error})
            self.writes = True
            self.write()

    def write(self) -> None:
        """Replace the status file, all at once."""
        if not self.writes:
            return
        self.written = time.monotonic()
        self.status.updated = timestamp()
        self.status.elapsed_s = round(self.written - self.began, 2)
        path = status_file(self.status.stage)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(self.status.model_dump_json(indent=2) + "\n", encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            if not self.warned:
                self.warned = True
                log.say(f"{path} cannot be written ({error.strerror}): `kdm status` does not see "
                        "how far this is", "warning")


current: Recorder | None = None
"""Of the stage that this process runs."""


@contextmanager
def recorded(
    stage: str, explain: Callable[[BaseException], str | None], rank: int | None = None
) -> Iterator[None]:
    """A context for a whole run of a stage; how it is left is what the status file says.

    Args:
        stage: which.
        explain: an error as one line, if it is one that a user can mend.
        rank: of this process among those that torchrun has started; None for a program of its own.
            The first of them writes the progress, and the program that started them the rest.
    """
    global current
    run = current = Recorder(stage, not rank)
    try:
        if rank is None:
            run.write()
        yield
    except BaseException as error:
        state, text = outcome(error, explain)
        if rank is None:
            run.end(state, text)
        elif text is not None:
            run.end_worker(text)
        raise
    else:
        if rank is None:
            run.end("done")
    finally:
        current = None


def outcome(
    error: BaseException, explain: Callable[[BaseException], str | None]
) -> tuple[State, str | None]:
    """The state in which an exception leaves a stage, and why it failed if it did."""
    if isinstance(error, SystemExit):
        if not error.code:
            return "done", None
        if error.code in STOPPED:
            return "stopped", None
        return "failed", (error.code if isinstance(error.code, str)
                          else f"ended with exit code {error.code}")
    if isinstance(error, KeyboardInterrupt):
        return "stopped", None
    return "failed", explain(error) or printable(f"{type(error).__name__}: {error}")


def timestamp() -> str:
    """Now, as an ISO time in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
