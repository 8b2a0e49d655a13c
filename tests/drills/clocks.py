"""A clock that jumps by hours, back and forth, while a stage runs."""

import re
from collections.abc import Iterator
from functools import partial
from random import Random

from tests.drills.bench import SAME, Bench, Drill, Failure, kill

STAGES = ("sample_pairs", "filter_pairs", "train_student@kdm", "evaluate@kdm", "report")
# Python runs it before the stage. Each look at the clock finds another time within some days.
JUMPING = """
import datetime, random, time
draw, real, real_ns, Real = random.Random({seed}), time.time, time.time_ns, datetime.datetime
def jump():
    return draw.choice([0, 0, 0, -86400, -3600, 3600, 90000]) + draw.random()
time.time = lambda: real() + jump()
time.time_ns = lambda: real_ns() + int(jump() * 1e9)
class Jumping(Real):
    @classmethod
    def now(cls, tz=None):
        return super().fromtimestamp(time.time(), tz)
    @classmethod
    def utcnow(cls):
        return cls.now(datetime.timezone.utc).replace(tzinfo=None)
datetime.datetime = Jumping
"""


def jump(stage: str, bench: Bench, random: Random, times: int) -> Iterator[str]:
    """A stage whose clock jumps, killed midway every other time, ends as if it had not."""
    expected, pace = bench.undisturbed(stage)
    folder = bench.project.parent / "clock"
    folder.mkdir()
    for trial in range(times):
        (folder / "sitecustomize.py").write_text(JUMPING.format(seed=random.getrandbits(32)))
        bench.clear(stage)
        mark = bench.mark()
        process = bench.start_stage(stage, PYTHONPATH=str(folder))
        if trial % 2 and bench.reach(stage, process, pace, random):
            kill(process)
            bench.remove_outputs(stage)
            process = bench.start_stage(stage, PYTHONPATH=str(folder))
        bench.complete(process)
        require_sane(bench.said(mark))
        bench.require(expected, stage)
        yield SAME


def require_sane(said: str) -> None:
    """No progress of negative time, and none of hours for what took seconds."""
    for took, left in re.findall(r"\[(-?[0-9:]+)<(-?[0-9:?]+)", said):
        if "-" in took + left or took.count(":") > 1:
            raise Failure(f"progress went by the clock: {took}<{left}")


DRILLS: dict[str, Drill] = {
    f"clock jumps, {stage.split('@')[0]}": partial(jump, stage) for stage in STAGES}
