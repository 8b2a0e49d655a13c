"""What storing pairs costs: its share of a sampling run, and its throughput alone."""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from kdm_core.pairs.sampling import sample_shard
from kdm_core.pairs.store import Block, PairStore
from kdm_core.teachers import load_teacher
from stages import paths

SHARDS = 3


def share_of_a_run(folder: Path) -> None:
    """Sample a few shards with the teacher of the last run and time both halves."""
    teacher, _ = load_teacher(paths.TEACHER)
    spec = PairStore.open(paths.PAIRS).spec
    store = PairStore.create(folder / "share.zarr", spec, {})
    solving = writing = 0.0
    for shard in range(SHARDS):
        start = time.perf_counter()
        block, _ = sample_shard(spec, teacher, shard, torch.device("cpu"))
        middle = time.perf_counter()
        store.write_shard(shard, block)
        solving, writing = solving + middle - start, writing + time.perf_counter() - middle
    print(f"writing takes {writing / (solving + writing):.2%} of a sampling run "
          f"({SHARDS * spec.shard} pairs, {spec.nfe} evaluations each)")


def throughput(folder: Path) -> None:
    """Write pairs of CIFAR-10's size, noise in float16 and samples in uint8."""
    template = PairStore.open(paths.PAIRS).spec
    samples = template.samples.model_copy(update={"shape": [3, 32, 32]})
    spec = template.model_copy(update={
        "samples": samples, "splits": {"test": 0, "validation": 0, "train": 40_000},
        "shard": 10_000, "chunk": 500, "compute_batch": 500})
    store = PairStore.create(folder / "throughput.zarr", spec, {})
    generator = np.random.default_rng(0)
    noise = generator.standard_normal((spec.shard, 3, 32, 32), np.float32).astype(np.float16)
    # Neither constant, which compresses to nothing, nor random, which does not compress.
    smooth = np.cumsum(generator.integers(-3, 4, (spec.shard, 3, 32, 32)), axis=3) + 128
    sample = smooth.astype(np.uint8)
    start = time.perf_counter()
    for shard in range(store.num_shards):
        rows = spec.shard_range(shard)
        store.write_shard(shard, Block(noise, sample, np.zeros(len(rows), np.int64),
                                       np.arange(rows.start, rows.stop)))
    seconds = time.perf_counter() - start
    size = sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file())
    print(f"{spec.count / seconds:,.0f} pairs/s of 3×32×32, {size / spec.count / 1000:.1f} kB each")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        share_of_a_run(Path(folder))
        throughput(Path(folder))


if __name__ == "__main__":
    main()
