"""Batches of 128 pairs of CIFAR-10's size, from our store and from a file a pair.

    python -m benchmarks.pair_reading [--pairs 80000] [--files 20000] [--rounds 7]

The peer is what is published today: an npz a pair, `arr_0` (2, 3, 32, 32) float32, read by a torch
DataLoader with two workers (kept between the rounds). Ours hold noise in float16 and samples in
uint8. All deliver the same float32 tensors in shuffled order; all files are in the page cache.
The memory is the high-water mark of a fresh process each that reads an epoch.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count as count_up
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.timing import ratio, rounds
from kdm_core.noise import check_value
from kdm_core.pairs.reading.batches import PairReader
from kdm_core.pairs.reading.resident import ResidentReader
from kdm_core.pairs.reading.streaming import StreamingReader
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import Block, PairStore
from kdm_core.samples import SampleSpec
from kdm_core.values import from_uint8

BATCH, SHAPE, CPU = 128, (3, 32, 32), torch.device("cpu")
PEER, RESIDENT, STREAMING = "npz files", "resident", "streaming"
SEEDED = "streaming, seeded noise"
# Batches a round: about a second of each.
BATCHES = {PEER: 100, RESIDENT: 4000, STREAMING: 1000, SEEDED: 150}
GOALS = {RESIDENT: "≥ 50×", STREAMING: "≥ 10×"}
KIB_A_MB = 1000 / 1.024  # kibibytes a megabyte


class NpzFolder(Dataset[Tensor]):
    """A file a pair, as it is read today."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.iterdir())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: int) -> Tensor:
        return torch.from_numpy(np.load(self.files[item])["arr_0"])


def npz_batches(folder: Path) -> Iterator[Tensor]:
    loader = DataLoader(NpzFolder(folder), batch_size=BATCH, shuffle=True, drop_last=True,
                        num_workers=2, persistent_workers=True)
    while True:
        yield from loader


def specification(count: int, noise: str) -> StoreSpec:
    return StoreSpec.model_validate({
        "samples": SampleSpec(kind="image", shape=list(SHAPE)), "teacher": None, "noise_seed": 0,
        "noise": noise, "noise_dtype": "float16", "noise_scale": 80.0, "sample_dtype": "uint8",
        "noise_check": check_value(0, SHAPE, "float16") if noise == "seeded" else None,
        "solver": None, "times": [], "nfe": None, "compute_batch": 500, "precision": "fp32",
        "splits": {"test": 0, "validation": 0, "train": count}, "chunk": 500, "shard": 2000})


def blocks(spec: StoreSpec) -> Iterator[Block]:
    """What a store of random noise holds, shard by shard."""
    generator = np.random.default_rng(0)
    for shard in range(spec.num_shards):
        rows = np.array(spec.shard_range(shard))
        shape = (len(rows), *SHAPE)
        noise = generator.standard_normal(shape, np.float32).astype(np.float16)
        # Neither constant, which compresses to nothing, nor random, which does not compress.
        smooth = np.cumsum(generator.integers(-3, 4, shape), axis=3) + 128
        yield Block(noise, smooth.astype(np.uint8), np.full(len(rows), -1), rows)


def make_files(folder: Path, count: int, files: int) -> None:
    """A store of `count` pairs, one of `files` with seeded noise, and `files` of the first one's
    pairs as a file each."""
    (folder / "npz").mkdir()
    store = PairStore.create(folder / "stored", specification(count, "stored"), {})
    seeded = PairStore.create(folder / "seeded", specification(files, "seeded"), {})
    for shard, block in enumerate(blocks(store.spec)):
        store.write_shard(shard, block)
        if shard < seeded.spec.num_shards:
            rows = seeded.spec.shard_range(shard)
            seeded.write_shard(shard, Block(
                block.noise[: len(rows)], block.sample[: len(rows)], block.label[: len(rows)],
                block.index[: len(rows)]))
            save_each(folder / "npz", block, rows)


def save_each(folder: Path, block: Block, rows: range) -> None:
    samples = from_uint8(torch.from_numpy(block.sample)).numpy()
    for row, noise, sample in zip(rows, block.noise.astype(np.float32), samples, strict=False):
        np.savez(folder / f"{row:06d}.npz", np.stack([noise, sample]))


def readers(folder: Path) -> dict[str, Callable[[], PairReader]]:
    """By name; streaming has two windows, together a quarter of the store."""
    stored, seeded = PairStore.open(folder / "stored"), PairStore.open(folder / "seeded")
    stream = partial(StreamingReader, split="train", batch=BATCH, seed=0, device=CPU)
    return {
        RESIDENT: lambda: ResidentReader.open(stored, "train", BATCH, 0, CPU),
        STREAMING: partial(stream, store=stored, window=stored.spec.count // 8),
        SEEDED: partial(stream, store=seeded, window=seeded.spec.count // 2),
    }


def check_same(folder: Path, made: dict[str, PairReader]) -> None:
    """Make sure that the readers deliver what the files hold.

    Raises:
        AssertionError: they do not.
    """
    files = NpzFolder(folder / "npz")
    for reader in (made[RESIDENT], made[STREAMING]):
        batch = reader(0)
        for place, row in enumerate(reader.order(0).tolist()):
            if row < len(files):
                noise, sample = files[row]
                assert torch.equal(batch.noise[place], noise)
                assert torch.equal(batch.samples[place], sample)


def run(batches: Iterator[object], count: int) -> None:
    for _ in range(count):
        next(batches)


def throughput(folder: Path, count: int) -> None:
    made = {name: make() for name, make in readers(folder).items()}
    check_same(folder, made)
    sources: dict[str, Iterator[object]] = {PEER: npz_batches(folder / "npz")}
    sources |= {name: map(reader, count_up()) for name, reader in made.items()}
    seconds = rounds({name: partial(run, batches, BATCHES[name])
                      for name, batches in sources.items()}, count)
    each = {name: [value / BATCHES[name] / BATCH for value in values]
            for name, values in seconds.items()}
    print("| reader | pairs/s | against npz files | goal |\n|---|---|---|---|")
    for name, values in each.items():
        print(f"| {name} | {1 / statistics.median(values):,.0f} | {ratio(each[PEER], values)} "
              f"| {GOALS.get(name, '')} |")
    for reader in made.values():
        reader.close()


def report_memory(folder: Path, names: list[str]) -> None:
    print("| reader | memory of a process that reads an epoch |\n|---|---|")
    for name in ["nothing", *names]:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.pair_reading", "--memory", str(folder), name],
            check=True, text=True, stdout=subprocess.PIPE)
        print(f"| {name} | {int(done.stdout) / KIB_A_MB:,.0f} MB |", flush=True)


def read_an_epoch(folder: Path, name: str) -> None:
    if name != "nothing":
        with readers(folder)[name]() as reader:
            run(map(reader, count_up()), reader.per_epoch)
    # Not getrusage, whose mark is also that of the process which started this one. Linux only.
    status = Path("/proc/self/status").read_text()
    print(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=80_000, help="of our store")
    parser.add_argument("--files", type=int, default=20_000, help="of the peer")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory:
        read_an_epoch(Path(given.memory[0]), given.memory[1])
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_files(folder, given.pairs, given.files)
        size = given.pairs * 3 * np.prod(SHAPE) / 1e6
        print(f"{given.pairs:,} pairs ({size:,.0f} MB decoded), {given.files:,} files, windows of "
              f"{given.pairs // 8:,} pairs, {torch.get_num_threads()} threads\n")
        throughput(folder, given.rounds)
        print()
        report_memory(folder, [RESIDENT, STREAMING, SEEDED])


if __name__ == "__main__":
    main()
