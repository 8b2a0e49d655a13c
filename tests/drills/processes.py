"""Processes that compute for a stage are killed, and what they are told by goes and comes back."""

import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from random import Random

import psutil

from tests.drills.bench import LIMIT_S, SAME, Bench, Drill, Failure, await_progress, kill
from tests.support.project import edit
from tests.support.waiting import free_port

PAIRS = "sample_pairs"
STUDENT = "train_student@kdm"


def kill_dask_worker(bench: Bench, random: Random, times: int) -> Iterator[str]:
    """One of two Dask workers of this machine is killed while pairs are sampled."""
    expected = bench.results(PAIRS)
    edit(bench.project, lambda values: values["execution"].update(
        sampling={"engine": "dask", "workers": 2}))
    yield from kill_children(PAIRS, expected, bench, random, times)


def kill_rank(bench: Bench, random: Random, times: int) -> Iterator[str]:
    """One of two processes that train together is killed; the stage starts both again."""
    edit(bench.project, lambda values: values["execution"].update(
        training={"engine": "torchrun", "nproc_per_node": 2}))
    expected, _ = bench.undisturbed(STUDENT)
    yield from kill_children(STUDENT, expected, bench, random, times)


def kill_children(
    stage: str, expected: dict[str, str], bench: Bench, random: Random, times: int
) -> Iterator[str]:
    """One process that a stage has started is killed at a random point of the work."""
    done = 0
    while done < times:
        bench.clear(stage)
        process = bench.start_stage(stage)
        await_progress(process, partial(share, bench, stage), random.uniform(0.02, 0.6))
        victims = computing(process)
        if victims:
            random.choice(victims).send_signal(signal.SIGKILL)
            done += 1
        bench.complete(process)
        bench.require(expected, stage)
        if victims:
            yield SAME


def computing(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes that compute for a stage: of all that it has started, the largest."""
    try:
        found = psutil.Process(process.pid).children(recursive=True)
        return [child for child in found if child.memory_info().rss > 100e6]
    except psutil.NoSuchProcess:
        return []


def share(bench: Bench, stage: str) -> float:
    """How much of a stage's work is there, from 0 to 1."""
    work = bench.project / "data/work" / stage
    if stage == PAIRS:
        return len(list(work.glob("*/pairs.zarr/index/c/*[0-9]"))) / 29
    steps = [int(path.stem[-8:]) for path in work.glob(f"*/*-{'[0-9]' * 8}.safetensors")]
    return max(steps, default=0) / 200


def restart_scheduler(bench: Bench, random: Random, times: int) -> Iterator[str]:
    """The scheduler of a cluster with two workers is killed and started again, in midwork."""
    expected, port = bench.results(PAIRS), free_port()
    address = f"tcp://127.0.0.1:{port}"
    edit(bench.project, lambda values: values["execution"].update(
        sampling={"engine": "dask", "address": address, "workers": 2}))

    def start_all() -> list[subprocess.Popen[bytes]]:
        # Workers end with their scheduler; what watches over them starts them again.
        return [start_dask("scheduler", bench, "--port", str(port)),
                *(start_dask("worker", bench, address, "--nthreads", "1") for _ in range(2))]

    cluster = start_all()
    for _ in range(times):
        bench.clear(PAIRS)
        process = bench.start_stage(PAIRS)
        if not await_progress(process, partial(share, bench, PAIRS), random.uniform(0.02, 0.6)):
            raise Failure(f"it ended too early: {bench.said()[-2000:]}")
        kill(cluster[0])
        time.sleep(random.uniform(0, 3))
        for worker in cluster[1:]:
            worker.wait(LIMIT_S)
        cluster = start_all()
        bench.complete(process)
        yield bench.require(expected, PAIRS)


def start_dask(name: str, bench: Bench, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a member of a cluster, which ends with the bench."""
    return bench.start("-m", f"distributed.cli.dask_{name}", *arguments,
                       "--host", "127.0.0.1", "--no-dashboard")


DRILLS: dict[str, Drill] = {
    "Dask worker killed": kill_dask_worker,
    "Dask scheduler killed and started again": restart_scheduler,
    "torchrun rank killed": kill_rank,
}
