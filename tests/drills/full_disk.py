"""A disk that gets full: a small file system of its own, in a namespace of its own.

Linux only: mounting one takes `unshare` with user namespaces.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

from tests.drills.bench import LIMIT_S, MENDED, SAME, Bench, Drill, Failure, Impossible
from tests.drills.stops import parts
from tests.support.project import ROOT

SIZE = "200m"
STAGES = ("prepare_data", "sample_pairs", "train_student@kdm")
CACHE = "DVC's cache"
NO_ROOM = "No space left on device|make room"
NAMESPACE = ("unshare", "--map-root-user", "--mount")


def fill_disk(what: str, bench: Bench, random: Random, times: int) -> Iterator[str]:
    """Have a drill run by this module as a program, in a namespace in which it may mount.

    Raises:
        Impossible: there is none here.
    """
    disk = bench.project.parent / "disk"
    disk.mkdir()
    require_mounts(disk)
    program = subprocess.Popen(
        [*NAMESPACE, sys.executable, "-m", __name__, what, str(bench.project), str(disk),
         str(bench.log), str(random.getrandbits(32)), str(times)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert program.stdout is not None and program.stderr is not None
    try:
        for line in program.stdout:
            yield line.strip()
        if program.wait():
            raise Failure(program.stderr.read()[-2000:])
    finally:
        program.terminate()
        program.wait(LIMIT_S)


def require_mounts(disk: Path) -> None:
    """Make sure that this user can mount a file system.

    Raises:
        Impossible: that is not so.
    """
    if shutil.which(NAMESPACE[0]) is None:
        raise Impossible(f"there is no {NAMESPACE[0]}")
    mounted = subprocess.run([*NAMESPACE, *mount(disk)], capture_output=True, text=True)
    if mounted.returncode:
        raise Impossible(f"no right to mount a file system: {mounted.stderr.strip()}")


def mount(disk: Path) -> list[str]:
    """The command that mounts a small file system."""
    return ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(disk)]


def main(what: str, finished: Path, disk: Path, log: Path, seed: int, times: int) -> None:
    """Run a drill on a disk of its own; prints the outcomes.

    The log lies elsewhere, since what is to be read in it must not be cut.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the bench ends what it has started
    subprocess.run(mount(disk), check=True)
    with Bench(finished, disk / "bench", log) as bench:
        for outcome in (fill_cache(bench, Random(seed), times) if what == CACHE
                        else fill_while(what, bench, Random(seed), times)):
            print(outcome, flush=True)


def fill_while(stage: str, bench: Bench, random: Random, times: int) -> Iterator[str]:
    """Something else takes all of the disk while a stage runs."""
    expected, pace = bench.undisturbed(stage)
    for _ in range(times):
        bench.clear(stage)
        mark, process = bench.mark(), bench.start_stage(stage)
        bench.reach(stage, process, pace, random)
        complete = parts(bench, stage)
        fill(bench, room=random.choice([0, random.randrange(100_000)]))
        outcome = SAME
        if process.wait(LIMIT_S) != 0:
            bench.require_clear_error(process, mark, NO_ROOM)
            if parts(bench, stage) < complete:
                raise Failure(f"{complete} parts were complete, {parts(bench, stage)} are left")
            outcome = MENDED
        balloon(bench).unlink()
        if outcome == MENDED:
            bench.remove_outputs(stage)
            bench.complete(bench.start_stage(stage))
        bench.require(expected, stage)
        yield outcome


def fill_cache(bench: Bench, random: Random, times: int) -> Iterator[str]:
    """There is room for the pairs and not for DVC's copy of them, or for neither."""
    stage = "sample_pairs"
    expected = bench.results(stage)
    size = sum(file.stat().st_size for file in bench.outputs(stage)[0].rglob("*"))
    for _ in range(times):
        bench.clear(stage)
        shutil.rmtree(bench.project / ".dvc/cache")
        fill(bench, room=int(size * random.uniform(0.5, 2.5)))
        mark, process = bench.mark(), bench.start_dvc("--single-item", stage, "--force")
        failed = process.wait(LIMIT_S) != 0
        balloon(bench).unlink()
        if failed:
            said = bench.said(mark)
            if not re.search(NO_ROOM, said) or "Traceback" in said:
                raise Failure(f"no clear error: {said[-2000:]}")
            bench.complete(bench.start_dvc("--single-item", stage))
        bench.require(expected, stage)
        yield MENDED if failed else SAME


def balloon(bench: Bench) -> Path:
    """The file that takes all that is free."""
    return bench.project.parent / "balloon"


def fill(bench: Bench, room: int) -> None:
    """Take all that is free on the disk but some bytes."""
    with balloon(bench).open("wb") as file:
        while (free := shutil.disk_usage(bench.project).free - room) > 0:
            try:
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), free)
            except OSError:  # the program has just taken some of it
                continue


DRILLS: dict[str, Drill] = {
    f"disk full, {what.split('@')[0]}": partial(fill_disk, what) for what in (*STAGES, CACHE)}

if __name__ == "__main__":
    drill, project, disk, log, *numbers = sys.argv[1:]
    main(drill, Path(project), Path(disk), Path(log), *map(int, numbers))
