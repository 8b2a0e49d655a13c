"""SIGTERM at random instants: the stages of pairs finish the shard, others stop at once."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from random import Random

from pipeline.runtime.status import read_status
from pipeline.runtime.stopping import EXIT_CODE
from tests.drills.bench import LIMIT_S, SAME, Bench, Drill, Failure, Pace, await_progress

STAGES = ("teacher", "sample_pairs", "filter_pairs", "train_student@kdm", "evaluate@kdm")
FINISHING = ("sample_pairs", "filter_pairs")
"""Stages that end with code 143 when what is under way is complete."""


def stop_stage(
    stage: str, bench: Bench, random: Random, times: int, latest: float = 1.0
) -> Iterator[str]:
    """A stage is asked to end; the next run goes on from what it has kept.

    `latest`: of the instants, as a share of the time that the work takes.
    """
    expected, pace = bench.undisturbed(stage)
    done = 0
    while done < times:
        bench.clear(stage)
        process = bench.start_stage(stage)
        if not reach(bench, stage, process, pace, random, latest):
            bench.complete(process)
            continue
        complete = parts(bench, stage)
        os.killpg(process.pid, signal.SIGTERM)
        code = process.wait(LIMIT_S)
        require_end(bench, stage, code, expected)
        if code and parts(bench, stage) < complete:
            raise Failure(f"{complete} parts were complete, {parts(bench, stage)} are left")
        if code:
            bench.remove_outputs(stage)
            bench.complete(bench.start_stage(stage))
        bench.require(expected, stage)
        done += 1
        yield f"exit code {code}, {SAME}"


def reach(
    bench: Bench, stage: str, process: subprocess.Popen[bytes], pace: Pace, random: Random,
    latest: float,
) -> bool:
    """Wait for a random instant of a stage's run; returns False if it has ended before.

    One that finishes what is under way does so from when it counts what it does.
    """
    if stage not in FINISHING:
        return bench.reach(stage, process, pace, random)
    await_progress(process, partial(counting, bench, stage, process), 1)
    # More of them early: what it counts is the first part of the work.
    time.sleep(latest * pace.work * random.random() ** 2)
    return process.poll() is None


def counting(bench: Bench, stage: str, process: subprocess.Popen[bytes]) -> bool:
    """Whether this run of a stage has begun to count."""
    status = read_status(bench.project, stage)
    return status is not None and status.pid == process.pid and status.progress is not None


def require_end(bench: Bench, stage: str, code: int, expected: dict[str, str]) -> None:
    """Make sure that a stage has ended as it must after SIGTERM.

    Raises:
        Failure: it has not.
    """
    status = read_status(bench.project, stage)
    stopped = status is not None and status.state == "stopped"
    if stage not in FINISHING:
        ended = code in (0, -signal.SIGTERM)
    elif code == EXIT_CODE:
        ended = stopped and not begun(bench)
    else:  # in the milliseconds between the work and its end, the signal finds no handler
        ended = code == 0 or bench.results(stage) == expected
    if not ended:
        raise Failure(f"exit code {code} after SIGTERM, {status}, begun {begun(bench)}: "
                      f"{bench.said()[-1000:]}")


def begun(bench: Bench) -> set[str]:
    """The shards of unfinished work that were begun and are not complete."""
    return {shard.name for store in (bench.project / "data/work").glob("*/*/pairs.zarr")
            for shard in store.glob("*/c/*") if not (store / "index/c" / shard.name).exists()}


def parts(bench: Bench, stage: str) -> int:
    """How much of a stage's unfinished work is complete: shards, parts of the filter."""
    work = bench.project / "data/work" / stage
    patterns = ("*/pairs.zarr/index/c/*", "*/*.safetensors")
    return sum(len(list(work.glob(pattern))) for pattern in patterns)


DRILLS: dict[str, Drill] = {
    f"SIGTERM to {stage.split('@')[0]}": partial(stop_stage, stage) for stage in STAGES}
