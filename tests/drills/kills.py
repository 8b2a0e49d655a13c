"""SIGKILL at random instants: of a stage, of the whole pipeline, of DVC alone."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from functools import partial
from random import Random

import psutil

from tests.drills.bench import CUT, SAME, Bench, Drill, Failure, kill

STAGES = ("prepare_data", "reference", "autoencoder", "teacher", "sample_pairs", "filter_pairs",
          "train_student@kdm", "evaluate@kdm", "study@kdm", "report")
IN_A_ROW = 4
"""How often, at most, a run is killed before it may come to its end."""
LATEST_S = 12.0
"""How long, at most, a pipeline runs until it is killed."""
ORPHAN_S = 5.0
"""How long a stage may outlive its DVC: it looks twice a second, on cores that are busy."""


def kill_stage(stage: str, bench: Bench, random: Random, times: int) -> Iterator[str]:
    """A stage that is killed, and killed again as it goes on, ends as if nothing had been."""
    expected, pace = bench.undisturbed(stage)
    done = 0
    while done < times:
        bench.clear(stage)
        killed = 0
        for _ in range(random.randint(1, IN_A_ROW)):
            process = bench.start_stage(stage)
            if not bench.reach(stage, process, pace, random):
                bench.complete(process)
                bench.require(expected, stage)
                break
            kill(process)
            bench.remove_outputs(stage)
            killed += 1
        else:
            bench.complete(bench.start_stage(stage))
            bench.require(expected, stage)
        yield from [SAME] * min(killed, times - done)
        done += killed


def kill_leader(process: subprocess.Popen[bytes]) -> None:
    """Kill DVC and not its stage, which must end by itself."""
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(children, ORPHAN_S)
    if alive:
        raise Failure(f"outlived DVC: {[child.cmdline() for child in alive]}")


def kill_dvc(
    stages: Sequence[str], bench: Bench, random: Random, times: int
) -> Iterator[str]:
    """DVC is killed while it runs one of some stages; the next one goes on."""
    expected = bench.results()
    done = 0
    while done < times:
        arguments = ("--single-item", random.choice(stages), "--force")
        process = bench.start_dvc(*arguments)
        time.sleep(random.uniform(0.5, LATEST_S / 2))
        if process.poll() is None:
            kill_leader(process)
            mark = bench.mark()
            cut = bench.mend_records(bench.start_dvc(*arguments), mark)
            bench.require(expected)
            done += 1
            yield CUT if cut else SAME
        else:
            bench.complete(process)


def kill_pipeline(bench: Bench, random: Random, times: int) -> Iterator[str]:
    """`dvc repro` from nothing is killed again and again on the way to its end."""
    expected = bench.results()
    done = 0
    while done < times:
        bench.start_over()
        killed, mark, process = 0, bench.mark(), bench.start_dvc()
        while killed < times - done:
            # Long enough for the pipeline to get on: DVC and a stage need some seconds to start.
            time.sleep(random.uniform(0.5, LATEST_S))
            if process.poll() is not None:
                break
            kill(process)
            killed, mark, process = killed + 1, bench.mark(), bench.start_dvc()
        cut = bench.mend_records(process, mark)
        bench.require(expected)
        yield from [SAME] * (killed - cut) + [CUT] * cut
        done += killed


DRILLS: dict[str, Drill] = {
    **{f"SIGKILL of {stage.split('@')[0]}": partial(kill_stage, stage) for stage in STAGES},
    "SIGKILL of DVC, not of its stage": partial(kill_dvc, STAGES),
    "SIGKILL of dvc repro": kill_pipeline,
}
