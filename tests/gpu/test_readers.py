"""Readers give the pairs of a store, on any device, however far that is behind the host."""


import numpy as np
import pytest
import torch

from kdm_core.pairs.reading.resident import ResidentReader
from kdm_core.pairs.reading.streaming import StreamingReader
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import Block, PairStore
from tests.gpu.models import SPEC

pytestmark = pytest.mark.gpu

PAIRS, SHARD, BATCH, WINDOW = 64, 8, 8, 24


@pytest.fixture(scope="module")
def blocks() -> list[Block]:
    generator = np.random.default_rng(0)
    shape = (SHARD, *SPEC.sample_shape)
    return [Block(generator.standard_normal(shape, np.float32).astype(np.float16),
                  generator.integers(0, 256, shape, np.uint8), np.arange(SHARD) % 3,
                  np.arange(first, first + SHARD)) for first in range(0, PAIRS, SHARD)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, blocks: list[Block]) -> PairStore:
    made = PairStore.create(tmp_path_factory.mktemp("pairs") / "pairs.zarr",
                            StoreSpec.model_validate({
        "samples": SPEC, "teacher": None, "noise_seed": 0, "noise_dtype": "float16",
        "noise_scale": 80.0, "sample_dtype": "uint8", "solver": None, "times": [], "nfe": None,
        "compute_batch": SHARD, "precision": "fp32",
        "splits": {"test": 0, "validation": 0, "train": PAIRS}, "chunk": 4, "shard": SHARD}), {})
    for number, block in enumerate(blocks):
        made.write_shard(number, block)
    return made


@pytest.mark.parametrize("window", [None, WINDOW])
def test_batches_are_the_stores_pairs_while_the_device_is_busy(
    window: int | None, store: PairStore, blocks: list[Block], device: torch.device
) -> None:
    noise, samples = (np.concatenate([getattr(block, name) for block in blocks])
                      for name in ("noise", "sample"))
    reader = (ResidentReader.open(store, "train", BATCH, 0, device) if window is None else
              StreamingReader(store, "train", BATCH, 0, device, window))
    with reader:
        kept = []
        for step in range(2 * reader.per_epoch):
            keep_busy(device)  # copies that nobody waits for are still to be done
            reader.prepare(step)
            pairs = reader(step)
            kept.append((pairs.noise.clone(), pairs.samples.clone(), pairs.labels.clone()))
        for step, (found_noise, found_samples, labels) in enumerate(kept):
            rows = reader.order(step).cpu().numpy()
            assert torch.equal(found_noise.cpu(), torch.from_numpy(noise[rows]).float())
            expected = torch.from_numpy(samples[rows]).double() / 127.5 - 1
            torch.testing.assert_close(found_samples.cpu().double(), expected, rtol=0, atol=1e-6)
            assert torch.equal(labels.cpu(), torch.from_numpy(rows % SHARD % 3))


def test_windows_are_pinned_where_a_gpu_copies_from_them(
    store: PairStore, device: torch.device
) -> None:
    with StreamingReader(store, "train", BATCH, 0, device, WINDOW) as reader:
        reader(0)
        slots = [*reader._free, *reader._held.values()]
        assert slots and {values.is_pinned() for slot in slots for values in slot.pairs.values
                          } == {device.type == "cuda"}


def test_a_step_does_not_wait_for_the_device(store: PairStore, cuda: torch.device) -> None:
    with StreamingReader(store, "train", BATCH, 0, cuda, WINDOW) as reader:
        reader(0)
        torch.cuda.synchronize()
        reader.prepare(1)
        torch.cuda.set_sync_debug_mode("error")
        try:
            reader(1)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def keep_busy(device: torch.device) -> None:
    if device.type == "cuda":
        matrix = torch.ones(4096, 4096, device=device)
        for _ in range(4):
            matrix = matrix @ matrix / 4096
