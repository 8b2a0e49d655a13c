"""Processes that compute for a stage are killed, and what they are told by goes and comes back."""

import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from functools import partial
from random import Random

import psutil

from tests.drills.bench import LIMIT_S, SAME, Bench, Drill, Failure, await_progress, kill
from tests.support.project import edit
from tests.support.waiting import free_port

PAIRS = "sample_pairs"
STUDENT = "train_student@kdm"


def kill_dask_worker(bench: Bench, random: Random, times: int) -> Iterator[str]:
    """One of two Dask workers is killed while pairs are sampled; its nanny starts another."""
    expected, port = bench.results(PAIRS), use_dask(bench)
    workers = start_cluster(bench, port)[1:]
    yield from kill_children(PAIRS, expected, bench, random, times, workers)


def kill_rank(bench: Bench, random: Random, times: int) -> Iterator[str]:
    """One of two processes that train together is killed; the stage starts both again."""
    edit(bench.project, lambda values: values["execution"].update(
        training={"engine": "torchrun", "nproc_per_node": 2}))
    expected, _ = bench.undisturbed(STUDENT)
    yield from kill_children(STUDENT, expected, bench, random, times)


def kill_children(
    stage: str, expected: dict[str, str], bench: Bench, random: Random, times: int,
    parents: Sequence[subprocess.Popen[bytes]] = (),
) -> Iterator[str]:
    """One process that a stage, or these, have started is killed at a random point of the work."""
    done = 0
    while done < times:
        bench.clear(stage)
        process = bench.start_stage(stage)
        await_progress(process, partial(share, bench, stage), random.uniform(0.02, 0.6))
        victims = [child for parent in parents or [process] for child in computing(parent)]
        if victims:
            random.choice(victims).send_signal(signal.SIGKILL)
            done += 1
        bench.complete(process)
        bench.require(expected, stage)
        if victims:
            yield SAME


def computing(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes that compute: of all that this one has started, the largest."""
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
    expected, port = bench.results(PAIRS), use_dask(bench)
    cluster = start_cluster(bench, port)
    for _ in range(times):
        bench.clear(PAIRS)
        process = bench.start_stage(PAIRS)
        if not await_progress(process, partial(share, bench, PAIRS), random.uniform(0.02, 0.6)):
            raise Failure(f"it ended too early: {bench.said()[-2000:]}")
        kill(cluster[0])
        time.sleep(random.uniform(0, 3))
        for worker in cluster[1:]:
            worker.wait(LIMIT_S)
        cluster = start_cluster(bench, port)  # workers end with their scheduler
        bench.complete(process)
        yield bench.require(expected, PAIRS)


def use_dask(bench: Bench) -> int:
    """Have pairs sampled by two workers of a cluster, at the port that this returns."""
    port = free_port()
    edit(bench.project, lambda values: values["execution"].update(sampling={
        "engine": "dask", "address": f"tcp://127.0.0.1:{port}", "workers": 2}))
    return port


def start_cluster(bench: Bench, port: int) -> list[subprocess.Popen[bytes]]:
    """Start a scheduler and two workers."""
    address = f"tcp://127.0.0.1:{port}"
    return [start_dask("scheduler", bench, "--port", str(port)),
            *(start_dask("worker", bench, address, "--nthreads", "1") for _ in range(2))]


def start_dask(name: str, bench: Bench, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a member of a cluster, which ends with the bench."""
    return bench.start("-m", f"distributed.cli.dask_{name}", *arguments,
                       "--host", "127.0.0.1", "--no-dashboard")


DRILLS: dict[str, Drill] = {
    "Dask worker killed": kill_dask_worker,
    "Dask scheduler killed and started again": restart_scheduler,
    "torchrun rank killed": kill_rank,
}
