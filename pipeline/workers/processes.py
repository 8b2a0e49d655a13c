"""Processes of this machine, each on a GPU of its own where there are any."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from kdm_core.errors import KDMError
from pipeline.runtime.stopping import Stop
from pipeline.workers.tasks import OnResult, Place, Task, Work

POLL_S = 0.2


class Processes:
    """See `pipeline.workers.tasks.Engine`. Processes are started when there is work for them."""

    alone = False
    patience_s = 0.0

    def __init__(
        self, places: Sequence[Place], stop: Stop, say: Callable[[str], None]
    ) -> None:
        """`places`: where each of them computes."""
        self.places, self.stop, self.say = places, stop, say
        self.workers = len(places)
        self.processes: dict[Connection, BaseProcess] = {}
        self.numbers: dict[Connection, int] = {}
        self.given: dict[Connection, Task] = {}

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *reason: object) -> None:
        for connection, process in self.processes.items():
            process.kill()
            process.join()
            connection.close()

    def run(
        self, task: Task, items: Sequence[Any], on_result: OnResult, own: Work | None = None
    ) -> None:
        self.stop.check()
        self.start(min(self.workers, len(items)))
        count = len(self.processes)
        todo, at_work = deque(range(len(items))), dict[Connection, int]()
        while (todo and not self.stop.asked) or at_work:
            for connection in [one for one in self.processes if one not in at_work]:
                if todo and not self.stop.asked:
                    at_work[connection] = todo.popleft()
                    self.give(connection, task, items[at_work[connection]])
            for ready in wait(list(self.processes), POLL_S):
                assert isinstance(ready, Connection)
                place = at_work.pop(ready, None)
                try:
                    result = ready.recv()
                except (EOFError, OSError):  # in the middle of a message, it is an OSError
                    self.lose(ready)
                    todo.extendleft([] if place is None else [place])
                    continue
                if isinstance(result, BaseException):
                    raise result
                assert place is not None
                on_result(place, result)
            if not self.processes and not self.stop.asked:
                raise KDMError(f"all {count} workers were lost (killed, or out of memory?): run "
                               "again to go on after what is complete")
        self.stop.check()

    def start(self, count: int) -> None:
        """Have so many processes, or as many as there are already."""
        context = multiprocessing.get_context("spawn")
        for number in set(range(count)) - set(self.numbers.values()):
            ours, theirs = context.Pipe()
            process: BaseProcess = context.Process(
                target=work, args=(self.places[number], theirs), daemon=True,
                name=f"worker {number + 1} of {self.workers}")
            process.start()
            theirs.close()  # so that the end of the worker is the end of the pipe
            self.processes[ours], self.numbers[ours] = process, number

    def give(self, connection: Connection, task: Task, item: Any) -> None:
        """Send an item, with its task if that is new to the worker."""
        known = self.given.get(connection) is task
        self.given[connection] = task
        with suppress(OSError):  # it is lost, as the end of its pipe will tell
            connection.send((None if known else task, item))

    def lose(self, connection: Connection) -> None:
        """Do without a process that has ended."""
        process = self.processes.pop(connection)
        del self.numbers[connection]
        self.given.pop(connection, None)
        connection.close()
        process.join()
        self.say(f"{process.name} (pid {process.pid}) was lost ({reason(process)}): its work is "
                 "left to the others")


def reason(process: BaseProcess) -> str:
    """How a process ended."""
    code = process.exitcode or 0
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def work(place: Place, parent: Connection) -> None:
    """The whole of a worker: results of the items that come, or what went wrong with one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    do: Work | None = None
    while True:
        task, item = parent.recv()
        try:
            if task is not None:
                do = task.start(place.prepare())
            assert do is not None
            parent.send(do(item))
        except Exception as error:  # those of a user's module can be any
            parent.send(told(error))


def told(error: Exception) -> Exception:
    """An error that is being handled, as another process can have it: with where it was raised."""
    known = type(error).__module__.partition(".")[0] in ("builtins", "torch")
    if not (known or isinstance(error, KDMError)):  # others may be of classes not to be had there
        error = RuntimeError(repr(error))
    error.add_note(f"In a worker:\n{traceback.format_exc()}")
    return error


def end_with_parent() -> None:
    """Wait for the end of the parent process, then end this one at once."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
