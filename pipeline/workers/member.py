"""What runs in the workers of a Dask cluster."""

import ctypes
import platform
from typing import Any, NamedTuple

from distributed import Scheduler, WorkerPlugin, get_worker
from distributed import Worker as DaskWorker

from kdm_core.errors import KDMError
from pipeline.workers.fitness import Wanted, Worker
from pipeline.workers.tasks import Task, Work

PREFIX = "kdm-"
# glibc's own limits, and mallopt's names for them (malloc.h).
ALLOCATOR = {-3: 2**25, -1: 2**26}  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD


class Answer(NamedTuple):
    """What a worker says of an item.

    Attributes:
        done: False if it was told to begin with nothing more.
    """

    done: bool
    result: Any


class Mission(WorkerPlugin):  # type: ignore[misc]
    """A task as a worker has it; workers that come later are given it as well.

    Attributes:
        name: of this mission among others.
        leaving: whether to begin with nothing more.
    """

    def __init__(self, name: str, task: Task, wanted: Wanted) -> None:
        self.name, self.task, self.wanted = name, task, wanted
        self.leaving = False
        self.work: Work | None = None

    def setup(self, worker: DaskWorker) -> None:
        MISSIONS[self.name] = self
        keep_memory()

    def teardown(self, worker: DaskWorker) -> None:
        MISSIONS.pop(self.name, None)

    def do(self, item: Any) -> Any:
        """The result of an item.

        Raises:
            KDMError: this worker does not fit, or as the task.
        """
        # In this thread: how many threads torch takes is a setting of each.
        device = self.wanted.place.prepare()
        if self.work is None:
            worker = get_worker()
            # One that came late has not been looked at yet.
            self.wanted.check(worker.address, describe(self.wanted, worker))
            try:
                self.work = self.task.start(device)
            except KDMError as error:
                raise KDMError(f"the Dask worker {worker.address}: {error}") from error
        return self.work(item)


MISSIONS: dict[str, Mission] = {}
"""Of this worker, by their names."""


def keep_memory() -> None:
    """Have glibc keep the memory of intermediate results for the next ones, as by itself it would.

    Dask starts workers with MALLOC_TRIM_THRESHOLD_=65536, with which every large array is new
    memory from the system: sampling then takes twice the time (benchmarks/scaling.py).
    """
    if platform.libc_ver()[0] == "glibc":
        for name, limit in ALLOCATOR.items():
            ctypes.CDLL(None).mallopt(name, limit)


def do(name: str, item: Any) -> Answer:
    """One item of a mission."""
    mission = MISSIONS[name]
    return Answer(False, None) if mission.leaving else Answer(True, mission.do(item))


def leave(name: str) -> None:
    """Begin with nothing more."""
    if name in MISSIONS:
        MISSIONS[name].leaving = True


def describe(wanted: Wanted, dask_worker: DaskWorker) -> Worker:
    """What a worker is."""
    return wanted.describe(dask_worker.state.nthreads)


async def forget_others(dask_scheduler: Scheduler) -> None:
    """Drop the missions of clients that were killed, with all that they carry."""
    for name in list(dask_scheduler.worker_plugins):
        if name.startswith(PREFIX) and client_of(name) not in dask_scheduler.clients:
            await forget(name, dask_scheduler)


async def forget(name: str, dask_scheduler: Scheduler) -> None:
    """Drop a mission, which a scheduler that was started again does not know."""
    if name in dask_scheduler.worker_plugins:
        await dask_scheduler.unregister_worker_plugin(None, name)


def mission_name(client: str, number: int) -> str:
    """A name that tells whose mission it is."""
    return f"{PREFIX}{client}/{number}"


def client_of(name: str) -> str:
    """The client whose mission has this name."""
    return name.removeprefix(PREFIX).rpartition("/")[0]
