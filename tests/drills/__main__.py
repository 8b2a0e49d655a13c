"""Runs the drills, and writes what came of them into docs/reliability.md.

    python -m tests.drills [--times 20] [--only WORDS] [--seed SEED] [--side-by-side 2]
"""

import argparse
import multiprocessing
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from random import Random

from tests.drills import (
    checkpoints,
    clocks,
    damage,
    edits,
    full_disk,
    kills,
    processes,
    services,
    stops,
)
from tests.drills.bench import Bench, Drill, Impossible
from tests.drills.table import Result, as_table, write_table
from tests.support.project import ROOT, environment, make_project

# How many of the trials that are asked for: some faults take longer than others.
SHARES = {kills: 1.0, stops: 0.25, processes: 0.15, full_disk: 0.25, damage: 0.25,
          checkpoints: 0.25, clocks: 0.25, edits: 0.25, services: 0.5}
DRILLS: dict[str, tuple[Drill, float]] = {
    name: (drill, share) for module, share in SHARES.items()
    for name, drill in module.DRILLS.items()}
PAGE = ROOT / "docs/reliability.md"


def main() -> None:
    """Run the drills that the command line asks for; exit code 1 if one failed."""
    options = parse_options()
    names = [name for name in DRILLS if options.only.lower() in name.lower()]
    if not names:
        sys.exit(f"--only: no drill is called {options.only}; there are: {', '.join(DRILLS)}")
    print(f"seed {options.seed}, {len(names)} drills, up to {options.times} times each", flush=True)
    scratch = Path(tempfile.mkdtemp(prefix="kdm-drills-"))
    finished = make_finished(scratch / "finished")
    results: dict[str, Result] = {}
    with ProcessPoolExecutor(options.side_by_side, multiprocessing.get_context("fork")) as pool:
        futures = {pool.submit(run, name, finished, scratch, options.seed, options.times): name
                   for name in names}
        for future in as_completed(futures):
            results[futures[future]] = future.result()
            print(f"{len(results)} of {len(names)} drills done", flush=True)
    results = {name: results[name] for name in names}
    print(as_table(results))
    write_table(PAGE, results, list(DRILLS))
    if any(result.failure for result in results.values()):
        sys.exit(f"some drills failed; what they left is in {scratch}")
    shutil.rmtree(scratch)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.drills", description=__doc__)
    parser.add_argument("--times", type=int, default=20, help="trials of each drill")
    parser.add_argument("--only", default="", help="drills whose name has this in it; other "
                        "rows of the page stay")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--side-by-side", type=int, default=2, help="drills at a time")
    return parser.parse_args()


def make_finished(folder: Path) -> Path:
    """A project whose pipeline has run."""
    print("running the pipeline undisturbed", flush=True)
    project = make_project(folder, with_code=True)  # some edit it
    done = subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=project, text=True,
                          env=environment(OMP_NUM_THREADS="1"), capture_output=True)
    if done.returncode:
        sys.exit(f"the undisturbed pipeline failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return project


def run(name: str, finished: Path, scratch: Path, seed: int, times: int) -> Result:
    """Run a drill on a copy of the project; what it leaves is removed if all went well."""
    folder = scratch / re.sub(r"\W+", "-", name)
    drill, share = DRILLS[name]
    times = max(1, round(share * times))
    began, outcomes, failure, possible = time.monotonic(), list[str](), None, True
    with Bench(finished, folder) as bench:
        try:
            for outcome in drill(bench, Random(f"{seed}/{name}"), times):
                outcomes.append(outcome)
                print(f"[{name}] {len(outcomes)} of {times}: {outcome}", flush=True)
        except Impossible as error:
            possible = False
            print(f"[{name}] not possible here: {error}", flush=True)
        except Exception as error:  # whatever it is, the other drills go on
            failure = f"{type(error).__name__}: {error}"
            print(f"[{name}] FAILED after {len(outcomes)}: {failure}\n{bench.log}", flush=True)
    if failure is None:
        shutil.rmtree(folder)
    return Result(outcomes, failure, time.monotonic() - began, possible)


if __name__ == "__main__":
    main()
