"""Pairs of latents of 4×32×32 (EDM2-512, DiT-256): bytes a pair, and pairs/s of writing and
reading.

    python -m benchmarks.latent_pairs [--pairs 100000] [--dir FOLDER]

Latents are normal values of standard deviation 0.5, which compress less than any real ones.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.pair_writing import blocks
from kdm_core.noise import check_value
from kdm_core.pairs.reading.streaming import StreamingReader
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import PairStore
from kdm_core.samples import SampleSpec
from kdm_core.solvers import FixedSolver
from pipeline.runtime.runner import hardware

SHAPE = (4, 32, 32)
SHARD, CHUNK, BATCH, WINDOW = 10_000, 500, 256, 20_000
READ = 20_000
"""Pairs that are read, in random order through a window."""


def store_of(pairs: int, noise: str) -> StoreSpec:
    samples = SampleSpec(kind="latent", shape=list(SHAPE), sigma_data=0.5)
    return StoreSpec(
        schema_version=2, samples=samples, teacher="0" * 64, noise_seed=0, noise=noise,  # type: ignore[arg-type]
        noise_check=check_value(0, SHAPE, "float16") if noise == "seeded" else None,
        noise_dtype="float16", noise_scale=80.0, sample_dtype="float16",
        solver=FixedSolver(kind="heun", steps=18), times=[], nfe=35, compute_batch=500,
        precision="fp32", splits={"test": 0, "validation": 0, "train": pairs}, chunk=CHUNK,
        shard=SHARD)


def measure(folder: Path, pairs: int, noise: str) -> None:
    """Write a store and read a part of it, and say how fast that was and how large it is."""
    generator = np.random.default_rng(0)
    latents, drawn = (generator.standard_normal((SHARD, *SHAPE), np.float32) for _ in range(2))
    path = folder / f"{noise}.zarr"
    store = PairStore.create(path, store_of(pairs, noise), {})
    sample, halves = (0.5 * latents).astype(np.float16), drawn.astype(np.float16)
    start = time.perf_counter()
    for shard, block in blocks(store.spec, halves, sample):
        store.write_shard(shard, block)
    written = pairs / (time.perf_counter() - start)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / pairs
    steps = min(pairs, READ) // BATCH
    with StreamingReader(PairStore.open(path), "train", BATCH, 0, torch.device("cpu"),
                         min(pairs, WINDOW)) as reader:
        start = time.perf_counter()
        for step in range(steps):
            reader(step)
    read = steps * BATCH / (time.perf_counter() - start)
    print(f"{noise:8}{size:16,.0f}{written:18,.0f}{read:18,.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--dir", type=Path, default=None)
    chosen = parser.parse_args()
    print(f"{chosen.pairs:,} pairs of 4×32×32, {hardware(torch.device('cpu'))}\n"
          f"{'noise':8}{'bytes a pair':>16}{'pairs/s written':>18}{'pairs/s read':>18}")
    for noise in ("stored", "seeded"):
        with tempfile.TemporaryDirectory(dir=chosen.dir) as folder:
            measure(Path(folder), chosen.pairs, noise)


if __name__ == "__main__":
    main()
