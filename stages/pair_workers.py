"""Processes that fill one pair store together, each on a GPU of its own where there are any."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import torch

from kdm_core.errors import KDMError, MismatchError
from kdm_core.pairs.location import local_path
from kdm_core.pairs.sampling import Part, sample_missing
from kdm_core.pairs.store import PairStore
from kdm_core.teachers import load_sampled


class Job(NamedTuple):
    """What a worker is told.

    Attributes:
        store, teacher: where they lie.
        part: of the store's shards.
        threads: the number that one process alone would have: another rounds differently.
    """

    store: str
    teacher: Path
    part: Part
    device: str
    threads: int
    deterministic: bool
    trust_code: bool


def sample_with_workers(
    job: Job, count: int, on_shard: Callable[[int, float], None], say: Callable[[str], None]
) -> None:
    """Fill what a store misses with `count` processes; those that are lost leave it to the others.

    Args:
        on_shard: is told of each shard that is written, and the evaluations a pair that it took.

    Raises:
        KDMError: a worker failed for a reason that holds for all, or all were lost.
    """
    context = multiprocessing.get_context("spawn")
    workers: dict[Connection, BaseProcess] = {}
    try:
        for number in range(count):
            ours, theirs = context.Pipe(duplex=False)
            process: BaseProcess = context.Process(
                target=work, args=(own_job(job, number, count), theirs), daemon=True,
                name=f"worker {number + 1} of {count}")
            process.start()
            theirs.close()  # so that the end of the worker is the end of the pipe
            workers[ours] = process
        lost = listen(dict(workers), on_shard, say)
    finally:
        for connection, process in workers.items():
            process.kill()  # without effect on those that have ended
            process.join()
            connection.close()
    if lost == count:
        raise KDMError(f"all {count} workers were lost (killed, or out of memory?): run again to "
                       "go on after the last complete shard")


def listen(
    workers: dict[Connection, BaseProcess], on_shard: Callable[[int, float], None],
    say: Callable[[str], None],
) -> int:
    """Pass on what workers tell, until all have ended; returns how many of them were lost."""
    lost = 0
    while workers:
        for ready in wait(list(workers)):
            assert isinstance(ready, Connection)
            try:
                message = ready.recv()
            except (EOFError, OSError):  # in the middle of a message, it is an OSError
                process = workers.pop(ready)
                process.join()
                if process.exitcode:
                    lost += 1
                    say(f"{process.name} (pid {process.pid}) was lost ({reason(process)}): its "
                        "shards are left to the others")
                continue
            if isinstance(message, BaseException):
                raise message
            on_shard(*message)
    return lost


def reason(process: BaseProcess) -> str:
    """How a process ended."""
    code = process.exitcode or 0
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def own_job(job: Job, number: int, count: int) -> Job:
    """The job of one worker: the next GPU, unless a certain one was asked for.

    Where there are no claims each has shards of its own.
    """
    device = torch.device(job.device)
    if device.type == "cuda" and device.index is None:
        job = job._replace(device=f"cuda:{number % torch.cuda.device_count()}")
    if local_path(job.store) is None:
        k, n = job.part
        job = job._replace(part=((k - 1) * count + number + 1, n * count))
    return job


def work(job: Job, parent: Connection) -> None:
    """The whole of a worker: tell the parent of each shard, or of what a user can mend."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(job.threads)
    torch.use_deterministic_algorithms(job.deterministic, warn_only=True)
    try:
        store = PairStore.open(job.store, writable=True)
        spec, device = store.spec, torch.device(job.device)
        teacher, mark, guide = load_sampled(job.teacher, spec.guidance, job.trust_code)
        if (mark, guide) != (spec.teacher, spec.guide):
            raise MismatchError(f"{job.teacher} has changed since {job.store} was begun: run the "
                                "stages again")
        for shard, nfe in sample_missing(store, teacher.to(device), device, job.part):
            parent.send((shard, nfe))
    except (KDMError, MemoryError, OSError, RuntimeError) as error:
        parent.send(error)


def end_with_parent() -> None:
    """Wait for the end of the parent process, then end this one at once."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
