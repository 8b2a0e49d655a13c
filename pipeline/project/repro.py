"""Access to DVC: which stages there are, and running one of them.

DVC holds its repository's lock only for moments: it lets go of it while a stage's command runs, so
that stages that share no outputs run side by side, and takes it again to record the result.

No module in this folder may be called as one that is imported elsewhere, `dvc` say: Prefect puts
the folder of the flow's file first on the path.
"""

import codecs
import math
import os
import re
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import networkx
from dvc.repo import Repo

from kdm_core.errors import KDMError
from pipeline.project.dvc_records import look, with_remedy
from pipeline.runtime.log import is_error, readable
from pipeline.runtime.processes import ask_programs, stop_group

# In this time, sampling can finish what is under way; the other stages keep their unfinished work
# as they go. It must be less than the 30 s that Prefect gives a cancelled flow.
GRACE_S = 20.0
LAST_GRACE_S = 2.0
POLL_S = 0.2
# Of a progress bar that redraws itself, one state in this many seconds is shown.
REDRAW_S = 5.0
LAST_LINES = 20
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class StageError(KDMError):
    """A stage failed.

    Attributes:
        mendable: the stage said what a person must mend, so that another try would fail alike.
    """

    def __init__(self, message: str, mendable: bool) -> None:
        super().__init__(message)
        self.mendable = mendable


class StageStopped(KDMError):
    """A stage was stopped on request."""


class StageTimeout(StageStopped, TimeoutError):
    """A stage took longer than it may. Prefect calls the state of such a task `TimedOut`."""


def stage_graph(root: Path) -> dict[str, set[str]]:
    """The stages of the pipeline in `root` and, for each, those it depends on directly.

    Returns:
        Addresses as `dvc repro` takes them, each after all that it depends on.

    Raises:
        PipelineError: there is no pipeline, or DVC cannot read it.
    """
    return look(root, needs_of)


def needs_of(repo: Repo) -> dict[str, set[str]]:
    """The stages in the order in which they run, each with those it depends on directly."""
    graph = repo.index.graph
    order = networkx.lexicographical_topological_sort(graph.reverse(copy=False), address)
    return {address(stage): {address(need) for need in graph.successors(stage)}
            for stage in order}


def address(stage: object) -> str:
    """How `dvc repro` calls a stage from the repository's root, wherever we are."""
    path = getattr(stage, "path_in_repo")  # noqa: B009 - DVC's stages have no type hints
    name = getattr(stage, "name", None)
    if name is None:
        return str(path)
    return str(name) if path == "dvc.yaml" else f"{path}:{name}"


def reproduce(
    stage: str, root: Path, log: Callable[[str], None], stop: threading.Event | None = None,
    beside_others: bool = False, timeout_s: float | None = None,
) -> None:
    """Run one stage if anything that it depends on has changed since DVC last ran it.

    Whatever ends this call, none of the processes it has started is left.

    Args:
        stage: its address.
        root: folder of the dvc.yaml.
        log: is given each line of output as it comes.
        stop: when another thread sets it, the stage is stopped.
        beside_others: whether other stages compute at the same time, on the same cores.
        timeout_s: the stage is stopped when it has taken so many seconds; None lets it run.

    Raises:
        StageError: it failed; the message ends with its last lines.
        StageStopped: `stop` was set.
        StageTimeout: it took longer than `timeout_s`.
    """
    stop = stop or threading.Event()
    if stop.is_set():
        raise StageStopped(f"{stage} was not started")
    # Without --wait-for-lock, DVC gives up after three seconds: two stages that finish together
    # while one of them hashes large outputs would lose the other's result. The lock goes with
    # its owner, so that the wait ends.
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage]
    deadline = time.monotonic() + timeout_s if timeout_s is not None else math.inf
    process = subprocess.Popen(
        command, cwd=root, env=child_environment(beside_others), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    last: deque[str] = deque(maxlen=LAST_LINES)
    mendable, status = False, None

    def over() -> bool:
        return stop.is_set() or time.monotonic() > deadline

    try:
        for line in lines_of(process, over):
            log(readable(line))
            last.append(readable(line))
            mendable = mendable or is_error(line, stage)
        if not over():
            status = process.wait()
    finally:
        stop_group(process, LAST_GRACE_S)
    if stop.is_set():
        raise StageStopped(f"{stage} was stopped")
    if status is None:
        raise StageTimeout(f"{stage} was stopped after {timeout_s:g} s, the most that a stage may "
                           "take; run again to go on with it")
    if status:
        raise StageError(with_remedy(f"{stage} failed:\n" + "\n".join(last)), mendable)


def child_environment(beside_others: bool = False) -> dict[str, str]:
    """This process's environment, in which `python` is this Python."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", "PYTHONUNBUFFERED": "1"}
    if beside_others:
        # Threads that spin while they wait take the cores from the other stages: two students at
        # once then take twice the time or more. Alone, a stage is faster with spinning threads.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return environment


def lines_of(process: subprocess.Popen[bytes], over: Callable[[], bool]) -> Iterator[str]:
    """A process's output as it comes, until it ends.

    When `over` says so, the programs that it runs are asked to end, and have a while to do so.
    """
    assert process.stdout is not None
    lines, end = Lines(), math.inf
    with process.stdout as pipe:
        while time.monotonic() < end:
            if end == math.inf and over():
                end = time.monotonic() + (GRACE_S if ask_programs(process) else 0.0)
            ready, _, _ = select.select([pipe], [], [], POLL_S)
            if ready:
                data = os.read(pipe.fileno(), 65536)
                if not data:
                    break
                yield from lines.feed(data)
            elif process.poll() is not None:
                break  # something that DVC has left behind still holds the pipe
    yield from lines.end()


class Lines:
    """Splits output into lines, about as a terminal would show them.

    What a carriage return overwrites is left out, but for one state every few seconds: a progress
    bar stays alive in a log and does not flood it.
    """

    def __init__(self, redraw_s: float = REDRAW_S) -> None:
        self.decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self.redraw_s = redraw_s
        self.rest = ""
        self.shown = time.monotonic()

    def feed(self, data: bytes) -> Iterator[str]:
        *complete, rest = (self.rest + self.decode(data)).replace("\r\n", "\n").split("\n")
        for line in complete:
            yield from self.show(visible(line))
        # A carriage return at the very end may be half of a line end.
        *overwritten, self.rest = re.split(r"\r(?!$)", rest)
        if overwritten and time.monotonic() - self.shown >= self.redraw_s:
            yield from self.show(visible(overwritten[-1]))

    def end(self) -> Iterator[str]:
        """What is left when there is no more to come."""
        rest, self.rest = self.rest, ""
        yield from self.show(visible(rest))

    def show(self, line: str) -> Iterator[str]:
        if line:
            self.shown = time.monotonic()
            yield line


def visible(line: str) -> str:
    """What of a line remains to be seen: the last of what overwrites itself, without colours."""
    parts = [part.rstrip() for part in ESCAPES.sub("", line).split("\r")]
    return next((part for part in reversed(parts) if part), "")
