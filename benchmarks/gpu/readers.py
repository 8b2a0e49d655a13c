"""`readers`: a million pairs on the device, and windows of a store that lies elsewhere."""

import tempfile
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np

from benchmarks.gpu.bench import Bench, Job, Row
from benchmarks.gpu.measuring import forget_memory, most_memory, once, seconds_of
from benchmarks.gpu.training import random_pairs
from kdm_core.pairs.reading.batches import PairReader
from kdm_core.pairs.reading.resident import ResidentReader
from kdm_core.pairs.reading.streaming import StreamingReader
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import Block, PairStore

SHARDS = 8


def jobs(bench: Bench) -> list[Job]:
    scale = bench.scale
    return [Job(f"resident, {scale.resident:,} pairs", 60.0, partial(resident, bench)),
            Job(f"streaming, windows of {scale.window:,}", 120.0, partial(streaming, bench))]


def resident(bench: Bench) -> Row:
    forget_memory(bench.device)
    pairs = random_pairs(bench, bench.scale.resident)
    with ResidentReader.of(pairs, bench.scale.batch, seed=0) as reader:
        return {**pace(bench, reader),
                "gb_of_pairs": sum(values.nbytes for values in pairs.values) / 1e9,
                "peak_memory_gb": most_memory(bench.device)}


def streaming(bench: Bench) -> Row:
    """From a store on this machine's disk, or rather in its page cache."""
    forget_memory(bench.device)
    with tempfile.TemporaryDirectory() as folder:
        store = filled(bench, Path(folder) / "pairs.zarr")
        with StreamingReader(store, "train", bench.scale.batch, 0, bench.device,
                             bench.scale.window) as reader:
            return {**pace(bench, reader), "peak_memory_gb": most_memory(bench.device)}


def pace(bench: Bench, reader: PairReader) -> Row:
    """Batches a second, one after the other, over whole epochs or more."""
    steps, least = count(), max(reader.per_epoch, 1)

    def some() -> None:
        for _ in range(min(least, 500)):
            step = next(steps)
            reader.prepare(step)
            reader(step)

    first = once(some, bench.device)
    seconds = seconds_of(some, bench.device, bench.scale.seconds)
    return {"precision": "float16 and uint8 at rest, fp32 batches", "batch": bench.scale.batch,
            "batches_per_s": min(least, 500) / seconds, "first_s": first}


def filled(bench: Bench, path: Path) -> PairStore:
    """A store of noise, which takes as long to read as any."""
    total, spec = bench.scale.streamed, bench.scale.spec
    shard = total // SHARDS
    store = PairStore.create(path, StoreSpec.model_validate({
        "samples": spec, "teacher": None, "noise_seed": 0, "noise_dtype": "float16",
        "noise_scale": 80.0, "sample_dtype": "uint8", "solver": None, "times": [], "nfe": None,
        "compute_batch": shard, "precision": "fp32",
        "splits": {"test": 0, "validation": 0, "train": total},
        "chunk": min(500, shard), "shard": shard}), {})
    generator = np.random.default_rng(0)
    for number in range(SHARDS):
        rows = np.array(store.spec.shard_range(number))
        shape = (len(rows), *spec.sample_shape)
        noise = generator.standard_normal(shape, np.float32).astype(np.float16)
        samples = generator.integers(0, 256, shape, np.uint8)
        store.write_shard(number, Block(noise, samples, np.full(len(rows), -1), rows))
    return store
