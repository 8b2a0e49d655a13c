"""Sampling by 1, 2 and 4 workers: throughput, what of it does not scale, and what follows from it.

    python -m benchmarks.scaling [--pairs 50000] [--rounds 3]

Samples pairs of the default run's teacher (data/teacher, which `dvc repro teacher` makes) with
`kdm pairs sample`'s own code, a program of its own each time, one thread a process, in turn.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from ruamel.yaml import YAML
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import ratio
from kdm_core.networks.song_unet import SongUNetConfig
from kdm_core.samples import SampleSpec
from kdm_core.teachers import Denoiser, DenoiserConfig

ROOT = Path(__file__).parent.parent
SHARD, BATCH = 1000, 500
ADDRESS = "tcp://127.0.0.1:18786"
ENGINES: dict[str, dict[str, Any]] = {
    "one process": {"engine": "local", "workers": 1},
    "2 processes": {"engine": "local", "workers": 2},
    **{f"Dask, {count} worker{'s' * (count > 1)}": {
        "engine": "dask", "address": ADDRESS, "workers": count} for count in (1, 2, 4)},
}
# 1 M pairs of CIFAR-10 as the preset `cifar10` makes them.
CIFAR10_PAIRS, CIFAR10_NFE = 1_051_000, 35
# Assumed, not measured: sustained FLOP/s of one GPU on EDM's U-Net. 60 TFLOP/s is two fifths of the
# dense TF32 peak of an A100 (156), or an eighth of an H100's (494).
GPU_FLOPS = 60e12


class Run(NamedTuple):
    """One run of an engine.

    Attributes:
        seconds: from the program's start to its end.
        sampling: of these, from the engine's start, which is a cluster's and that of Dask itself,
            over the teacher's loading and all shards to the engine's end.
        coordinating: CPU seconds that the process which hands out the shards used in that time,
            and the scheduler in all.
        content: hash of the store.
    """

    seconds: float
    sampling: float
    coordinating: float
    content: str


def make_project(folder: Path, pairs: int) -> None:
    """The least of a project that pairs can be sampled in; the teacher is that of the last run."""
    (folder / "data").mkdir()
    (folder / "data/teacher").symlink_to(ROOT / "data/teacher")
    values = YAML(typ="safe").load(ROOT / "params.yaml")
    values["compute"]["threads"] = 1
    values["pairs"] |= {"train": pairs - 2000, "validation": 1000, "test": 1000, "shard": SHARD,
                        "batch": BATCH, "chunk": BATCH, "labels": "uniform"}
    YAML().dump(values, folder / "params.yaml")


def sample(folder: Path, name: str, engine: dict[str, Any]) -> Run:
    """Sample all pairs in a new program."""
    values = YAML(typ="safe").load(folder / "params.yaml")
    values["execution"] = {"sampling": engine}
    YAML().dump(values, folder / "params.yaml")
    start = time.perf_counter()
    with cluster(engine["workers"] if engine["engine"] == "dask" else 0) as members:
        done = subprocess.run([sys.executable, "-m", "benchmarks.scaling", "--into", name],
                              cwd=folder, env=environment(), capture_output=True, text=True)
        used = [psutil.Process(member.pid).cpu_times() for member in members[:1]]
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stderr)
    told = json.loads(done.stdout.splitlines()[-1])
    told["coordinating"] += sum(times.user + times.system for times in used)
    return Run(seconds, **told)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@contextmanager
def cluster(workers: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A context in which a scheduler runs with so many workers; nothing for none."""
    worker = ["worker", ADDRESS, "--nthreads", "1", "--memory-limit", "0"]
    commands = [["scheduler", "--host", ADDRESS], *[worker] * workers] if workers else []
    members = [subprocess.Popen([sys.executable, "-m", "dask", *command, "--no-dashboard"],
                                env=environment(), stderr=subprocess.DEVNULL)
               for command in commands]
    try:
        yield members
    finally:
        for member in reversed(members):
            member.terminate()
            member.wait()


def sample_here(location: str) -> None:
    """What `sample` starts: sample, and tell how long it took, without what was imported before."""
    from pipeline.pairs.filling import sample_into
    from pipeline.runtime.runner import Stage

    stage = Stage("sample_pairs")
    start, used = time.perf_counter(), cpu_seconds()
    store = sample_into(stage, location)
    print(json.dumps({"sampling": time.perf_counter() - start,
                      "coordinating": cpu_seconds() - used, "content": store.content_hash()}))


def cpu_seconds() -> float:
    """Of this process and its threads, without its children."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(pairs: int, rounds: int) -> dict[str, list[Run]]:
    """All engines in turn, `rounds` times."""
    runs: dict[str, list[Run]] = {name: [] for name in ENGINES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_project(folder, pairs)
        for index in range(rounds):
            for engine, config in ENGINES.items():
                runs[engine].append(sample(folder, f"{len(runs[engine])}-{engine}.zarr", config))
                print(f"round {index + 1}, {engine}: {runs[engine][-1].seconds:.1f} s",
                      file=sys.stderr)
    contents = {run.content for found in runs.values() for run in found}
    if len(contents) > 1:
        sys.exit(f"the stores differ: {contents}")
    print(f"{pairs:,} digit pairs of 35 evaluations in {pairs // SHARD} shards, "
          f"{os.cpu_count()} cores, one thread a process; all {rounds * len(ENGINES)} stores have "
          f"the content {contents.pop()[:12]}\n")
    return runs


def show(runs: dict[str, list[Run]], pairs: int) -> None:
    """The table: throughput of the whole program and of the sampling alone."""
    one = runs["one process"]
    print(f"{'engine':18}{'pairs/s, all':>14}{'against one process':>26}"
          f"{'pairs/s, sampling':>20}{'against one process':>26}")
    for name, found in runs.items():
        whole, inner = ([getattr(run, part) for run in found] for part in ("seconds", "sampling"))
        print(f"{name:18}{pairs / statistics.median(whole):14,.0f}"
              f"{ratio([run.seconds for run in one], whole):>26}"
              f"{pairs / statistics.median(inner):20,.0f}"
              f"{ratio([run.sampling for run in one], inner):>26}")


def serial_share(runs: dict[str, list[Run]], part: str) -> float:
    """s of T(n) = T(1)·(s + (1 − s)/n), by least squares over Dask's runs with a core a worker."""
    one = statistics.median(getattr(run, part) for run in runs["Dask, 1 worker"])
    above = below = 0.0
    for name, found in runs.items():
        workers = ENGINES[name]["workers"]
        if not name.startswith("Dask") or workers > (os.cpu_count() or 1):
            continue
        for run in found:
            slope, rest = 1 - 1 / workers, getattr(run, part) / one - 1 / workers
            above, below = above + slope * rest, below + slope * slope
    return above / below


def cifar10_flops() -> float:
    """FLOPs of one evaluation of EDM's DDPM++ for CIFAR-10 on one image, as torch counts them."""
    network = SongUNetConfig(kind="song_unet", channels=128, multipliers=[2, 2, 2])
    spec = SampleSpec(kind="image", shape=[3, 32, 32])
    teacher = Denoiser(DenoiserConfig(kind="denoiser", network=network), spec).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        teacher.denoise(torch.zeros(1, 3, 32, 32), torch.ones(()), None)
    return float(counter.get_total_flops())


def project(startup: float, per_shard: float) -> None:
    """Hours for 1 M CIFAR-10 pairs: T(n) = startup + ceil(S/n)·t + S·c on n GPUs.

    Args:
        startup: seconds that two workers took beyond half of one process's: an upper bound of
            the time until all work.
        per_shard: c, seconds of the coordinator a shard, in which no two shards are served. Its
            start is in them, and so in the projection twice, which makes it pessimistic.
    """
    flops = cifar10_flops()
    rate = GPU_FLOPS / (flops * CIFAR10_NFE)
    print(f"\none evaluation of DDPM++ on one image: {flops / 1e9:.1f} GFLOP; at an assumed "
          f"{GPU_FLOPS / 1e12:.0f} TFLOP/s a GPU samples {rate:.1f} pairs/s of {CIFAR10_NFE} "
          f"evaluations\nstartup {startup:.1f} s, coordinator {1000 * per_shard:.1f} ms a shard")
    print(f"\n{'pairs a shard':>14}{'shards':>8}{'GPUs':>6}{'rounds':>8}{'hours':>8}"
          f"{'pairs/s':>10}{'efficiency':>12}")
    for shard in (10_000, 2_000):
        shards = ceil(CIFAR10_PAIRS / shard)
        alone = CIFAR10_PAIRS / rate
        for gpus in (1, 8, 64):
            turns = ceil(shards / gpus)
            seconds = startup + turns * shard / rate + shards * per_shard
            print(f"{shard:14,}{shards:8}{gpus:6}{turns:8}{seconds / 3600:8.2f}"
                  f"{CIFAR10_PAIRS / seconds:10,.0f}{alone / gpus / seconds:12.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--into", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.into:
        sample_here(arguments.into)
        return
    if not (ROOT / "data/teacher").exists():
        sys.exit("data/teacher is missing: run `dvc repro teacher`")
    runs = measure(arguments.pairs, arguments.rounds)
    show(runs, arguments.pairs)
    for part in ("seconds", "sampling"):
        print(f"serial share of the {'whole program' if part == 'seconds' else 'sampling'}: "
              f"{serial_share(runs, part):.1%}")
    two = runs["Dask, 2 workers"]
    shards = arguments.pairs / SHARD
    ideal = statistics.median(run.sampling for run in runs["one process"]) / min(
        2, os.cpu_count() or 1)
    startup = statistics.median(run.sampling for run in two) - ideal
    project(max(startup, 0.0), statistics.median(run.coordinating for run in two) / shards)


if __name__ == "__main__":
    main()
