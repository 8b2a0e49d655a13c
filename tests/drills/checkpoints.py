"""The newest checkpoint of a killed training is damaged: it falls back to the one before."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

from tests.drills.bench import SAME, Bench, Drill, Failure, await_progress, kill
from tests.drills.damage import damage_file


def damage_checkpoint(stage: str, bench: Bench, random: Random, times: int) -> Iterator[str]:
    """A training is killed once it has two checkpoints; the newer one is damaged."""
    expected, _ = bench.undisturbed(stage)
    for _ in range(times):
        bench.clear(stage)
        process = bench.start_stage(stage)
        # Two are kept.
        if not await_progress(process, partial(last_step, bench, stage), random.randint(20, 120)):
            raise Failure("it ended before it was killed")
        kill(process)
        newest = checkpoints(bench, stage)[-1]
        how = damage_file(newest, random, missing=False)
        bench.remove_outputs(stage)
        mark = bench.mark()
        bench.complete(bench.start_stage(stage))
        said = bench.said(mark)
        if f"{newest.name} is damaged" not in said or "going on from step" not in said:
            raise Failure(f"it did not say that {newest.name} was {how}: {said[-1000:]}")
        bench.require(expected, stage)
        yield f"falls back, says so, {SAME}"


def checkpoints(bench: Bench, stage: str) -> list[Path]:
    """A stage's checkpoints, the oldest first."""
    return sorted((bench.project / "data/work" / stage).glob(f"*/*-{'[0-9]' * 8}.safetensors"))


def last_step(bench: Bench, stage: str) -> int:
    """The step of a stage's newest checkpoint, once there are two; 0 before."""
    found = checkpoints(bench, stage)
    return int(found[-1].stem[-8:]) if len(found) > 1 else 0


DRILLS: dict[str, Drill] = {
    f"newest checkpoint damaged, {stage.split('@')[0]}": partial(damage_checkpoint, stage)
    for stage in ("teacher", "train_student@kdm")}
