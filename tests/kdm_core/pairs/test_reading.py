"""Readers of pairs: all of them give the same batches, whatever is in memory and whoever asks."""

import gc
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from kdm_core.compute import seeded
from kdm_core.errors import DataError, KDMError
from kdm_core.networks import MLPConfig
from kdm_core.noise import check_value
from kdm_core.operators import DenseConfig
from kdm_core.pairs.keep import KeepMask
from kdm_core.pairs.reading.batches import PairReader
from kdm_core.pairs.reading.indexing import PairDataset
from kdm_core.pairs.reading.order import BlockOrder
from kdm_core.pairs.reading.readers import open_reader
from kdm_core.pairs.reading.resident import ResidentReader
from kdm_core.pairs.reading.streaming import StreamingReader
from kdm_core.pairs.reading.whole import Pairs, read_split
from kdm_core.pairs.spec import KeptState, StoreSpec
from kdm_core.pairs.store import Block, PairStore
from kdm_core.samples import SampleSpec
from kdm_core.solvers import FixedSolver
from kdm_core.students.kdm import KDM, KDMConfig
from kdm_core.students.objective import LossConfig
from kdm_core.students.training import StudentTask
from kdm_core.training import distributed
from kdm_core.training.batches import BatchOrder
from kdm_core.training.config import TrainingConfig
from kdm_core.training.loop import fit

CPU = torch.device("cpu")
IMAGES = SampleSpec(kind="image", shape=[1, 4, 4], label_names=["a", "b"], sigma_data=0.5)
COUNT, BATCH, WINDOW = 104, 8, 40
"""Training pairs 11 to 115 lie in eight files of 16, the first and the last in part."""


def make_store(path: Path, noise: str = "stored", states: int = 0) -> PairStore:
    """A store of made-up pairs, by which each can be told."""
    spec = StoreSpec(
        samples=IMAGES, teacher="f" * 64, noise_seed=3, noise=noise,  # type: ignore[arg-type]
        noise_check=check_value(3, (1, 4, 4), "float16") if noise == "seeded" else None,
        noise_dtype="float16", noise_scale=80.0, sample_dtype="uint8",
        solver=FixedSolver(kind="heun", steps=3), times=[80.0, 20.0, 1.0, 0.0], nfe=5,
        compute_batch=8, precision="fp32",
        splits={"test": 6, "validation": 5, "train": COUNT}, chunk=8, shard=16,
        states=[KeptState(place=k + 1, position=0.9 - k / 4, scale=1.0) for k in range(states)])
    store = PairStore.create(path, spec, {})
    generator = np.random.default_rng(0)
    for shard in range(spec.num_shards):
        rows = np.array(spec.shard_range(shard))
        shape = (len(rows), 1, 4, 4)
        drawn = (store.draw_noise(rows) if noise == "seeded"
                 else generator.standard_normal(shape).astype(np.float16))
        states_of = generator.standard_normal((len(rows), states, 1, 4, 4)).astype(np.float16)
        store.write_shard(shard, Block(
            drawn, generator.integers(0, 256, shape, np.uint8), rows % 2, rows,
            states_of if states else None))
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    return make_store(tmp_path_factory.mktemp("pairs") / "p", states=2)


@pytest.fixture(scope="module")
def seeded_store(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    return make_store(tmp_path_factory.mktemp("pairs") / "p", noise="seeded")


def masked(store: PairStore) -> PairStore:
    """Without a whole file, and without every third pair."""
    reasons = np.zeros(store.spec.count, np.uint16)
    reasons[32:48] = 1
    reasons[::3] = 2
    return store.masked(KeepMask(store.spec.fingerprint, ["file", "third"], reasons))


def readers(store: PairStore, window: int | None = WINDOW, batch: int = BATCH) -> list[PairReader]:
    states = bool(store.spec.states)
    return [ResidentReader.open(store, "train", batch, 5, CPU, window, states),
            StreamingReader(store, "train", batch, 5, CPU, window or COUNT, states)]


def copies(pairs: Pairs) -> list[Tensor]:
    return [values.clone() for values in pairs.values]


def assert_same(first: list[Tensor], second: list[Tensor]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


# Order


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), batch=st.integers(1, 12),
       spare=st.integers(0, 20), seed=st.integers(0, 99), epoch=st.integers(0, 3))
def test_an_epoch_of_windows_is_a_permutation(
    sizes: list[int], batch: int, spare: int, seed: int, epoch: int
) -> None:
    window = min(batch, sum(sizes)) + max(sizes) - 1 + spare
    order = BlockOrder(np.array(sizes), window, batch, seed)
    windows = order.windows(epoch)
    sequence = np.concatenate(windows)
    assert sorted(sequence.tolist()) == list(range(sum(sizes)))
    edges = np.cumsum(sizes)
    files = [set(np.searchsorted(edges, items, side="right").tolist()) for items in windows]
    assert sum(len(found) for found in files) == len(sizes)  # no file is in two windows
    assert all(len(items) <= window for items in windows)
    assert all(len(items) >= order.batch for items in windows[:-1])
    steps = range(epoch * order.per_epoch, (epoch + 1) * order.per_epoch)
    read = torch.cat([order(step) for step in steps])
    assert read.tolist() == sequence[: len(read)].tolist()
    assert len(read) == order.per_epoch * order.batch > len(sequence) - order.batch


def test_epochs_and_seeds_are_shuffled_apart() -> None:
    sizes = np.full(20, 8)
    seen = [np.concatenate(BlockOrder(sizes, 48, 8, seed).windows(epoch)).tolist()
            for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(sequence) for sequence in seen}) == 4
    again = np.concatenate(BlockOrder(sizes, 48, 8, 1).windows(1)).tolist()
    assert again == seen[3]


def test_company_in_batches_is_as_documented() -> None:
    """Two items of a file share a batch with probability (B − 1) / (W − 1)."""
    files, size, window, batch, epochs = 24, 10, 60, 20, 300
    order = BlockOrder(np.full(files, size), window, batch, 0)
    together = 0
    for step in range(epochs * order.per_epoch):
        file = order(step).numpy() // size
        together += (file[:, None] == file).sum() - batch
    share = together / epochs / (files * size) / (size - 1)
    assert share == pytest.approx((batch - 1) / (window - 1), rel=0.05)


@pytest.mark.parametrize("batch, window", [(8, 22), (40, 50), (1, 15)])
def test_a_window_without_room_for_a_batch_is_refused(
    store: PairStore, batch: int, window: int
) -> None:
    least = batch + 16 - 1
    with pytest.raises(KDMError, match=rf"shuffle_buffer: {window} pairs .* at least {least}, or"):
        open_reader(store, "train", batch, 5, CPU, window)
    with open_reader(store, "train", batch, 5, CPU, least) as reader:
        assert isinstance(reader, StreamingReader)


def test_a_window_of_all_pairs_mixes_as_none_does(store: PairStore) -> None:
    for window in (None, COUNT, 10 * COUNT):
        reader = open_reader(store, "train", BATCH, 5, CPU, window)
        assert isinstance(reader, ResidentReader)
        assert_same(copies(reader(3)), copies(ResidentReader.of(
            read_split(store, "train", CPU), BATCH, 5)(3)))


# All readers


@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("kind", ["stored", "seeded"])
def test_all_readers_give_the_same_batches(
    store: PairStore, seeded_store: PairStore, kind: str, hidden: bool, window: int | None
) -> None:
    """Those of the split in its order, over two epochs, to the bit."""
    source = store if kind == "stored" else seeded_store
    source = masked(source) if hidden else source
    whole = read_split(source, "train", CPU, states=bool(source.spec.states))
    assert len(whole.noise) == len(source.kept_rows("train"))
    for reader in readers(source, window):
        with reader:
            for step in range(2 * reader.per_epoch + 1):
                items, batch = reader.order(step), reader(step)
                assert_same(copies(batch), [values[items] for values in whole.values])
                assert (batch.positions is None) == (whole.positions is None)
                if batch.positions is not None and whole.positions is not None:
                    assert torch.equal(batch.positions, whole.positions)


def test_an_epoch_reads_what_the_mask_keeps(store: PairStore) -> None:
    kept = masked(store)
    expected = {bytes(sample) for sample in kept.read(range(kept.spec.count)).sample[
        kept.kept_rows("train")].reshape(-1, 16)}
    for reader in readers(kept, batch=1):
        with reader:
            seen = [((reader(step).samples + 1) * 127.5).round().to(torch.uint8).numpy().tobytes()
                    for step in range(reader.per_epoch)]
            assert set(seen) == expected
            assert len(seen) == len(expected)


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("window", [None, WINDOW])
def test_processes_share_the_global_batch(
    store: PairStore, monkeypatch: pytest.MonkeyPatch, processes: int, window: int | None
) -> None:
    steps = range(14)
    whole = ResidentReader.open(store, "train", BATCH, 5, CPU, window)
    expected = [copies(whole(step)) for step in steps]
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    for number in range(2):
        shares: list[list[list[Tensor]]] = []
        for rank in range(processes):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            with readers(store, window)[number] as reader:
                shares.append([copies(reader(step)) for step in steps])
        for step in steps:
            for part, values in enumerate(expected[step]):
                assert torch.equal(torch.cat([share[step][part] for share in shares]), values)


@given(steps=st.lists(st.integers(0, 30), min_size=2, max_size=6))
@settings(max_examples=12)
def test_any_step_can_be_asked_for(store: PairStore, steps: list[int]) -> None:
    """As a resumed training does, and back and forth."""
    resident, stream = readers(store)
    with stream:
        for step in steps:
            assert_same(copies(stream(step)), copies(resident(step)))


def test_a_batch_outlives_the_making_of_the_next(store: PairStore) -> None:
    for reader in readers(store):
        with reader:
            first = reader(0)
            before = copies(first)
            reader(1)
            assert_same(list(first.values), before)


def test_pairs_rest_as_they_are_stored(store: PairStore) -> None:
    told: list[int] = []
    reader = ResidentReader.open(store, "train", BATCH, 5, CPU, states=True,
                                 on_pairs=told.append)
    assert [values.dtype for values in reader.pairs.values] == [
        torch.float16, torch.uint8, torch.int64, torch.float16]
    assert sum(told) == COUNT
    assert len(told) == 8


def test_a_split_without_pairs_is_named(store: PairStore) -> None:
    reasons = np.ones(store.spec.count, np.uint16)
    nothing = store.masked(KeepMask(store.spec.fingerprint, ["all"], reasons))
    with pytest.raises(DataError, match=r"no train pairs.*loosen the filter"):
        open_reader(nothing, "train", BATCH, 5, CPU)
    with pytest.raises(DataError, match="no validation pairs"):
        read_split(nothing, "validation", CPU)
    assert len(read_split(nothing, "test", CPU).noise) == 6


# Streaming


def damaged(path: Path) -> PairStore:
    store = make_store(path)
    victim = store.shard_file("sample", 4)
    file = Path(str(victim.store.root), victim.path)
    content = bytearray(file.read_bytes())
    content[8] ^= 1
    file.write_bytes(content)
    return store


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("pairs")]


def test_an_error_of_a_thread_is_raised_where_pairs_are_asked_for(tmp_path: Path) -> None:
    store = damaged(tmp_path / "p")
    with StreamingReader(store, "train", BATCH, 5, CPU, WINDOW) as reader:
        served = 0
        with pytest.raises(DataError, match="pairs 64 to 80 are damaged"):
            for step in range(reader.per_epoch):
                reader(step)
                served += 1
        assert served < reader.per_epoch
        with pytest.raises(DataError, match="damaged"):  # also when asked again
            reader(served)
    with pytest.raises(DataError, match="damaged"):
        ResidentReader.open(store, "train", BATCH, 5, CPU)


def test_threads_end_with_the_reader(store: PairStore) -> None:
    gc.collect()
    before = len(reading_threads())
    with StreamingReader(store, "train", BATCH, 5, CPU, WINDOW) as reader:
        reader(0)
        assert len(reading_threads()) > before
    assert len(reading_threads()) == before
    reader = StreamingReader(store, "train", BATCH, 5, CPU, WINDOW)
    reader(0)
    del reader
    gc.collect()
    assert len(reading_threads()) == before


def test_two_windows_are_read_and_no_more(
    store: PairStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each file once an epoch."""
    read: list[range] = []
    plain = PairStore.read

    def noted(self: PairStore, rows: range, states: bool = True) -> Block:
        read.append(rows)
        return plain(self, rows, states)

    monkeypatch.setattr(PairStore, "read", noted)
    with StreamingReader(store, "train", BATCH, 5, CPU, WINDOW) as reader:
        read.clear()
        reader.prepare(0)
        windows = [len(items) for items in reader.order.windows(0)]
        assert windows[0] <= sum(map(len, read)) <= windows[0] + windows[1]
        for step in range(reader.per_epoch):
            reader(step)
        reader(reader.per_epoch)
    assert sum(map(len, read)) <= COUNT + 2 * WINDOW


# Indexing


def test_a_dataset_is_indexed_as_an_array(store: PairStore) -> None:
    dataset = PairDataset(store, "train", states=True)
    whole = read_split(store, "train", CPU, states=True)
    assert len(dataset) == COUNT
    for items in ([5, 100, 5, 0], slice(90, 200, 3), np.array([-1, 3]), torch.tensor([7])):
        assert_same(list(dataset[items].values),
                    [values[items] for values in whole.values])
    assert_same(list(dataset[11]), [values[11] for values in whole.values])
    assert_same(list(dataset[-1]), [values[-1] for values in whole.values])
    for wrong in (COUNT, -COUNT - 1, [0, COUNT]):
        with pytest.raises(IndexError):
            dataset[wrong]


@pytest.mark.parametrize("workers", [0, 2])
def test_torch_loads_from_a_dataset(store: PairStore, workers: int) -> None:
    dataset = PairDataset(masked(store), "train")
    loader = DataLoader(dataset, batch_size=16, shuffle=True, num_workers=workers,
                        generator=torch.Generator().manual_seed(0),
                        multiprocessing_context="fork" if workers else None)
    batches = list(loader)
    assert batches[0][0].shape == (16, 1, 4, 4)
    labels = torch.cat([label for _, _, label in batches])
    assert labels.sum() == dataset[:].labels.sum()
    noise = torch.cat([noise for noise, _, _ in batches])
    assert torch.equal(noise.flatten().sort()[0], dataset[:].noise.flatten().sort()[0])


def test_chunks_are_kept_up_to_the_limit(
    store: PairStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk of eight pairs has 8 · (32 + 16 + 8 + 8) bytes without states."""
    read: list[int] = []
    plain = PairStore.read_arrays

    def noted(self: PairStore, rows: range, names: list[str]) -> dict[str, np.ndarray]:
        read.append(rows.start)
        return plain(self, rows, names)

    monkeypatch.setattr(PairStore, "read_arrays", noted)
    dataset = PairDataset(store, "train", cache_bytes=2 * 8 * 64)
    for row, missed in ((12, True), (16, True), (13, False), (24, True), (12, False), (16, True)):
        read.clear()
        assert dataset[row - 11][2] == row % 2
        assert bool(read) == missed, row


# Training


def student_task(reader: PairReader, validation: Pairs) -> StudentTask:
    network = MLPConfig(kind="mlp", width=16, blocks=1)
    with seeded(0):
        student = KDM(KDMConfig(encoder=network, decoder=network, latent=8,
                                    operator=DenseConfig(kind="dense")), IMAGES)
    config = TrainingConfig.model_validate({
        "steps": 30, "batch": BATCH, "lr": 1e-3, "ema": 0.9, "precision": "fp32",
        "checkpoint_every": 7, "log_every": 30})
    return StudentTask(student, LossConfig(adversarial=0.0), config, reader, validation, seed=5)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("kill_at", [3, 20])
def test_a_killed_training_on_a_stream_ends_like_an_undisturbed_one(
    store: PairStore, tmp_path: Path, kill_at: int
) -> None:
    """And like one whose pairs lie in memory."""
    def kill(done: int) -> None:
        if done == kill_at:
            raise Killed

    validation = read_split(store, "validation", CPU)
    resident, stream = readers(store)
    whole = student_task(resident, validation)
    curves = fit(whole, tmp_path / "a", "key")
    with stream, pytest.raises(Killed):
        fit(student_task(stream, validation), tmp_path / "b", "key", kill)
    with readers(store)[1] as again:
        resumed = student_task(again, validation)
        assert fit(resumed, tmp_path / "b", "key") == curves
    for name, value in whole.student.state_dict().items():
        assert torch.equal(value, resumed.student.state_dict()[name]), name


def test_without_a_window_the_order_is_that_of_all_data(store: PairStore) -> None:
    """The same batches as from a permutation of the split: what trainings have always seen."""
    order = BatchOrder(COUNT, BATCH, 5)
    whole = read_split(store, "train", CPU)
    reader = open_reader(store, "train", BATCH, 5, CPU)
    for step in (0, 12, 13, 40):
        assert torch.equal(reader(step).samples, whole.samples[order(step)])
