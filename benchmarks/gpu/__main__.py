"""All that only a GPU can show, in one command.

    python -m benchmarks.gpu [--only PART …] [--minutes 25] [--out docs/results/gpu.json] [--anew]
    python -m benchmarks.gpu --table [--out FILE]
    python -m benchmarks.gpu --tiny

The parts are the tests marked `gpu`, the measurements, and what follows from them for a full run.
None takes more than eight minutes, and each result is in the file as soon as it is known: a call
that was cut goes on, and does again what failed or had no time. `--tiny` tries the code on any
machine, with networks of no size; it writes to a file only if it is given one.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gpu import arithmetic, checks, evaluation, generation, readers, sampling, training
from benchmarks.gpu.bench import Bench, Job, Row
from benchmarks.gpu.results import Results
from benchmarks.gpu.scale import FULL, TRIAL
from benchmarks.gpu.table import table
from kdm_core.compute import resolve_device
from kdm_core.errors import KDMError
from kdm_core.serialization import read_json

OUT = Path("docs/results/gpu.json")
MEASURED: dict[str, Callable[[Bench], list[Job]]] = {
    "sampling": sampling.jobs, "training": training.jobs, "readers": readers.jobs,
    "generation": generation.jobs, "evaluation": evaluation.jobs}
PARTS = ["tests", *MEASURED, "arithmetic"]
PART_S = 450.0
NO_TIME = "there was no time for it"


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    if given.table:
        print(table(read_json(given.out or OUT)))
        return 0
    device = resolve_device("auto")
    if device.type == "cpu" and not given.tiny:
        print("no GPU here: nothing was measured")
        return 0
    if given.tiny and given.out and given.out.resolve().parent == OUT.resolve().parent:
        raise KDMError(f"{given.out}: a trial is no result; write it to another folder")
    with tempfile.TemporaryDirectory() as folder:
        out = given.out or (Path(folder) / "trial.json" if given.tiny else OUT)
        bench = Bench(device, TRIAL if given.tiny else FULL)
        results = Results(out, bench.machine, given.tiny, given.anew)
        parts = given.only or [part for part in PARTS if part != "tests" or not given.tiny]
        # A trial calls what would be compiled as it is: to translate it takes minutes on a CPU.
        with torch.compiler.set_stance("force_eager" if given.tiny else "default"):
            failed = measure(bench, results, parts, time.monotonic() + 60 * given.minutes)
        print(table(results.content))
    return 1 if failed else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--minutes", type=float, default=25.0, help="that all parts may take")
    parser.add_argument("--out", type=Path, help=f"the file of results; by default {OUT}")
    parser.add_argument("--anew", action="store_true", help="forget what the file has")
    parser.add_argument("--tiny", action="store_true", help="a trial of the code, on any machine")
    parser.add_argument("--table", action="store_true", help="print the file as tables")
    return parser.parse_args(arguments)


def measure(bench: Bench, results: Results, parts: list[str], end: float) -> list[str]:
    """Do all parts until `end`, a time of the monotonic clock; returns the rows that failed."""
    failed: list[str] = []
    results.content["conditions"] |= {
        "bf16 TFLOP/s of one large product of matrices": bench.peak / 1e12,
        "convolutions in float32 may round to TF32": torch.backends.cudnn.allow_tf32,
        "torch.compile": ("not tried" if bench.scale.trial
                          else bench.compiler_problem or "works")}
    for part in parts:
        limit = min(end, time.monotonic() + PART_S)
        print(f"{part}: at most {max(0.0, limit - time.monotonic()):.0f} s", flush=True)
        if part == "tests":
            failed += test(bench, results, limit)
        elif part == "arithmetic":
            results.replace(part, arithmetic.rows(results))
        else:
            failed += do(part, MEASURED[part](bench), bench, results, limit)
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return failed


def test(bench: Bench, results: Results, limit: float) -> list[str]:
    """Run the tests until `limit`; returns the names of those that failed."""
    rows: list[Row] = []
    for group in checks.GROUPS:
        found = checks.run(group, max(1.0, limit - time.monotonic()))
        rows += [{**row, **bench.machine} for row in found]
        results.replace("tests", rows)
    return [row["name"] for row in rows if "why_not" in row]


def do(part: str, jobs: list[Job], bench: Bench, results: Results, limit: float) -> list[str]:
    """Measure what a part still misses until `limit`; returns the names of what failed."""
    failed = []
    for job in jobs:
        if results.has(part, job.name):
            continue
        if not bench.scale.trial and time.monotonic() + job.seconds > limit:
            results.add(part, job.name, {"why_not": NO_TIME})
            continue
        try:
            row = job.run()
        # One that does not fit the device, or that its compiler cannot translate, is a result too.
        except (RuntimeError, KDMError) as error:
            failed.append(f"{part}: {job.name}")
            row = {"why_not": f"{type(error).__name__}: {str(error)[:300]}"}
        results.add(part, job.name, row)
        print(f"  {job.name}: {figures(row)}", flush=True)
    return failed


def figures(row: dict[str, object]) -> str:
    return ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                     for name, value in row.items() if value is not None)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KDMError as error:
        sys.exit(f"error: {error}")
