"""What storing pairs costs: its share of a sampling run, its throughput alone, bytes a pair."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from benchmarks.timing import rounds
from kdm_core.networks import MLPConfig
from kdm_core.noise import check_value
from kdm_core.pairs.sampling import PairsConfig, plan_store, sample_shard
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import Block, PairStore
from kdm_core.samples import SampleSpec
from kdm_core.solvers import FixedSolver
from kdm_core.teachers import Denoiser, DenoiserConfig

CPU = torch.device("cpu")
SHARDS = 3
PAIRS = 20_000
ROUNDS = 5
IMAGE = (3, 32, 32)
CIFAR10 = StoreSpec(
    samples=SampleSpec(kind="image", shape=list(IMAGE), sigma_data=0.5), teacher="0" * 64,
    noise_seed=0, noise_dtype="float16", noise_scale=80.0, sample_dtype="uint8",
    solver=FixedSolver(kind="heun", steps=18), times=[], nfe=35, compute_batch=500,
    precision="fp32", splits={"test": 0, "validation": 0, "train": PAIRS}, chunk=500, shard=2000)
SEEDED = CIFAR10.model_copy(update={"noise": "seeded",
                                    "noise_check": check_value(0, IMAGE, "float16")})
CODECS: dict[str, Any] = {
    "none": None,
    **{f"zstd {level}": ZstdCodec(level=level) for level in (1, 3, 9)},
    **{f"blosc {name} 5, {shuffle}": BloscCodec(cname=name, clevel=5, shuffle=shuffle, typesize=1)
       for name in ("lz4", "zstd") for shuffle in ("noshuffle", "bitshuffle")},
}


def share_of_a_run(folder: Path) -> None:
    """Sample a few shards and time both halves.

    The teacher has a million parameters in the kind of network that does the least with each of
    them, for the smallest images; its weights are random, which is as fast as trained ones.
    """
    samples = SampleSpec(kind="image", shape=[1, 8, 8], sigma_data=0.5)
    teacher = Denoiser(DenoiserConfig(
        kind="denoiser", network=MLPConfig(kind="mlp", width=232, blocks=4)), samples).eval()
    config = PairsConfig(solver=FixedSolver(kind="heun", steps=18), train=SHARDS * 2000,
                         validation=2, test=2, precision="fp32")
    spec = plan_store(config, teacher, "0" * 64, None, 0, CPU)
    store = PairStore.create(folder / "share.zarr", spec, {})
    solving = writing = 0.0
    for shard in range(SHARDS):
        start = time.perf_counter()
        block, _ = sample_shard(spec, teacher, shard, CPU)
        middle = time.perf_counter()
        store.write_shard(shard, block)
        solving, writing = solving + middle - start, writing + time.perf_counter() - middle
    parameters = sum(p.numel() for p in teacher.parameters())
    print(f"writing takes {writing / (solving + writing):.2%} of a sampling run of an MLP of "
          f"{parameters:,} parameters ({SHARDS * spec.shard:,} pairs of 1×8×8, {spec.nfe} "
          f"evaluations each, {SHARDS * spec.shard / solving:,.0f} pairs/s)")


def images() -> dict[str, NDArray[np.uint8]]:
    """Samples of a shard (2000, 3, 32, 32), from what compresses well to what does not at all."""
    generator = np.random.default_rng(0)
    shape = (CIFAR10.shard, *IMAGE)
    smooth = np.cumsum(generator.integers(-3, 4, shape), axis=3) + 128
    return {"natural": natural(generator, shape), "smooth": smooth.astype(np.uint8),
            "incompressible": generator.integers(0, 256, shape, np.uint8)}


def natural(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Random images with the spectrum of natural ones: amplitudes fall as 1/f, channels agree."""
    rows, columns = np.fft.fftfreq(shape[2])[:, None], np.fft.rfftfreq(shape[3])
    amplitude = 1 / np.maximum(np.hypot(rows, columns), 1 / shape[2])
    grey = generator.standard_normal((shape[0], 1, *shape[2:]))
    white = 0.9 * grey + 0.4 * generator.standard_normal(shape)
    fields = np.fft.irfft2(np.fft.rfft2(white) * amplitude, s=shape[2:])
    return np.clip(128 + 60 * fields / fields.std(), 0, 255).astype(np.uint8)


def blocks(spec: StoreSpec, noise: Any, sample: NDArray[np.uint8]) -> Iterator[tuple[int, Block]]:
    """The same pairs again and again, as the shards of a store."""
    for shard in range(spec.num_shards):
        rows = spec.shard_range(shard)
        yield shard, Block(noise, sample, np.full(len(rows), -1),
                           np.arange(rows.start, rows.stop))


def throughput(folder: Path) -> None:
    """Write pairs of CIFAR-10's size, and see how large they are."""
    noise = np.random.default_rng(1).standard_normal((CIFAR10.shard, *IMAGE), np.float32)
    halves = noise.astype(np.float16)
    print(f"\n{'pairs of 3×32×32':32}{'pairs/s, median (range)':>32}{'bytes a pair':>14}")
    for kind, sample in images().items():
        for name, spec in {"stored float16": CIFAR10, "seeded": SEEDED}.items():
            path = folder / f"{kind} {name}.zarr"
            store = PairStore.create(path, spec, {})

            def write(store: PairStore = store, sample: NDArray[np.uint8] = sample) -> None:
                for shard, block in blocks(store.spec, halves, sample):
                    store.write_shard(shard, block)

            rates = [PAIRS / seconds for seconds in rounds({"": write}, ROUNDS)[""]]
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            spread = f"{np.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
            print(f"{f'{kind}, noise {name}':32}{spread:>32}{size / PAIRS:14,.0f}")


def codecs(folder: Path) -> None:
    """Samples alone, compressed in other ways: bytes a pair, and pairs/s of writing and reading."""
    print(f"\n{'samples':20}" + "".join(f"{kind:>30}" for kind in images()))
    for name, codec in CODECS.items():
        line = f"{name:20}"
        for sample in images().values():
            path = folder / "codec.zarr"
            array = zarr.create_array(
                path, shape=sample.shape, dtype="uint8", chunks=(CIFAR10.chunk, *IMAGE),
                shards=sample.shape, overwrite=True,
                compressors=[codec, Crc32cCodec()] if codec else [Crc32cCodec()])

            def write(array: Any = array, sample: NDArray[np.uint8] = sample) -> None:
                array[:] = sample

            seconds = rounds({"write": write, "read": lambda array=array: array[:]}, ROUNDS)
            size = sum(file.stat().st_size for file in path.rglob("*/0") if file.is_file())
            speeds = "/".join(f"{len(sample) / np.median(taken) / 1000:,.0f}"
                              for taken in seconds.values())
            line += f"{f'{size / len(sample):,.0f} B, {speeds} k/s':>30}"
        print(line)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        share_of_a_run(folder)
        throughput(folder)
        codecs(folder)


if __name__ == "__main__":
    main()
