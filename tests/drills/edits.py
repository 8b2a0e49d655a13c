"""params.yaml or the code is edited while a stage runs under DVC.

Whatever DVC has recorded then is true: the next `dvc repro` ends with the bytes of what is written
there now, and with those of before when the edit is undone.
"""

import re
from collections.abc import Iterator
from functools import partial
from random import Random
from time import monotonic, sleep
from typing import NamedTuple

from tests.drills.bench import LIMIT_S, SAME, Bench, Drill, Failure

STAGE = "reference"
RUN = (STAGE,)
"""With the plan, and the data."""


EDITED = re.compile(r" changed while this stage | was edited after this run was planned")


class Edit(NamedTuple):
    """Another text in the place of one that stands in a file."""

    file: str
    before: str
    after: str

    def make(self, bench: Bench, undo: bool = False) -> None:
        path, pair = bench.project / self.file, (self.before, self.after)
        old, new = reversed(pair) if undo else pair
        text = path.read_text()
        if text.count(old) != 1:
            raise Failure(f"{old} does not stand in {self.file} once")
        path.write_text(text.replace(old, new))


OWN = Edit("params.yaml", "lr: 0.005", "lr: 0.006")
OTHER = Edit("params.yaml", "title: Smoke test", "title: Another")
CODE = Edit("kdm_core/training/loop.py", "task.seeded_step(step)", "task.seeded_step(step + 1)")


def edit(change: Edit, disturbs: bool, bench: Bench, random: Random, times: int) -> Iterator[str]:
    """An edit at a random instant between the start of DVC and its end."""
    before = bench.results(STAGE)
    change.make(bench)
    after = run(bench)
    change.make(bench, undo=True)
    if (before != after) != disturbs or run(bench) != before:
        raise Failure("the edit itself does not do what it should")
    took = forced(bench)
    for _ in range(times):
        mark, process = bench.mark(), bench.start_dvc(*RUN, "--force")
        sleep(random.uniform(0, took))
        change.make(bench)
        refused = process.wait(LIMIT_S) != 0
        outcome = f"refused, then {SAME}" if refused else SAME
        if refused:
            require_refusal(bench.said(mark), disturbs)
        if run(bench) != after:
            raise Failure(f"recorded as what it is not: {bench.said(mark)[-2000:]}")
        change.make(bench, undo=True)
        if run(bench) != before:
            raise Failure(f"other bytes when the edit is undone: {bench.said(mark)[-2000:]}")
        yield outcome


def edit_and_undo(change: Edit, bench: Bench, random: Random, times: int) -> Iterator[str]:
    """An edit that is undone before the stage ends; the stage may have read what stood there."""
    before, took = bench.results(STAGE), forced(bench)
    for _ in range(times):
        mark, process = bench.mark(), bench.start_dvc(*RUN, "--force")
        first, second = sorted(random.uniform(0, took) for _ in range(2))
        sleep(first)
        change.make(bench)
        sleep(second - first)
        change.make(bench, undo=True)
        refused = process.wait(LIMIT_S) != 0
        if refused:
            require_refusal(bench.said(mark), True)
        if run(bench) != before:
            raise Failure(f"other bytes: {bench.said(mark)[-2000:]}")
        yield f"refused, then {SAME}" if refused else SAME


def run(bench: Bench) -> dict[str, str]:
    """What the stage has made when DVC says that it is up to date."""
    bench.complete(bench.start_dvc(*RUN))
    return bench.results(STAGE)


def forced(bench: Bench) -> float:
    """How long DVC takes for the stage when it has to run it."""
    began = monotonic()
    bench.complete(bench.start_dvc(*RUN, "--force"))
    return monotonic() - began


def require_refusal(said: str, disturbs: bool) -> None:
    """Make sure that a run that failed did so for an edit, and said so in one line."""
    errors = [line for line in said.splitlines() if f"[{STAGE}] error: " in line]
    if not disturbs or len(errors) != 1 or not EDITED.search(errors[0]):
        raise Failure(f"failed otherwise than it may: {said[-2000:]}")


DRILLS: dict[str, Drill] = {
    "params.yaml edited, section of the stage": partial(edit, OWN, True),
    "params.yaml edited, section of another": partial(edit, OTHER, False),
    "params.yaml edited and undone": partial(edit_and_undo, OWN),
    "code edited": partial(edit, CODE, True),
}
