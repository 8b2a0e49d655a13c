"""SIGTERM at random instants: the stages of pairs finish the shard, others stop at once."""

import os
import signal
from collections.abc import Iterator
from functools import partial
from random import Random

from tests.drills.bench import LIMIT_S, SAME, Bench, Drill, Failure

STAGES = ("teacher", "sample_pairs", "filter_pairs", "train_student@kdm", "evaluate@kdm")
FINISHING = ("sample_pairs", "filter_pairs")
"""Stages that end with code 143 when what is under way is complete."""


def stop_stage(stage: str, bench: Bench, random: Random, times: int) -> Iterator[str]:
    """A stage is asked to end; the next run goes on from what it has kept."""
    expected, pace = bench.undisturbed(stage)
    done = 0
    while done < times:
        bench.clear(stage)
        process = bench.start_stage(stage)
        # Only the work of the stages of pairs is more than a shard or a part.
        if not bench.reach(stage, process, pace, random, 0 if stage in FINISHING else 0.2):
            bench.complete(process)
            continue
        complete = parts(bench, stage)
        os.killpg(process.pid, signal.SIGTERM)
        code = process.wait(LIMIT_S)
        if code not in (0, 128 + signal.SIGTERM, -signal.SIGTERM):
            raise Failure(f"exit code {code} after SIGTERM")
        if code and parts(bench, stage) < complete:
            raise Failure(f"{complete} parts were complete, {parts(bench, stage)} are left")
        if code:
            bench.remove_outputs(stage)
            bench.complete(bench.start_stage(stage))
        bench.require(expected, stage)
        done += 1
        yield f"exit code {code}, {SAME}"


def parts(bench: Bench, stage: str) -> int:
    """How much of a stage's unfinished work is complete: shards, parts of the filter."""
    work = bench.project / "data/work" / stage
    patterns = ("*/pairs.zarr/index/c/*", "*/*.safetensors")
    return sum(len(list(work.glob(pattern))) for pattern in patterns)


DRILLS: dict[str, Drill] = {
    f"SIGTERM to {stage.split('@')[0]}": partial(stop_stage, stage) for stage in STAGES}
