"""Many writers, kills, full disks and growth: the store is always the same one, or unfinished."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kdm_core.errors import DataError, KDMError
from kdm_core.pairs.claims import claim, claims_folder, try_claim
from kdm_core.pairs.opening import require_space
from kdm_core.pairs.reading.whole import read_split
from kdm_core.pairs.sampling import WHOLE, sample_pairs, sample_shard, sampler, shards_of_part
from kdm_core.pairs.store import Block, PairStore
from kdm_core.solvers import FixedSolver
from pipeline.pairs import filling
from pipeline.pairs.kept import keep, link_anew
from stages.sample_pairs.elsewhere import stores_there
from stages.sample_pairs.growing import adopt
from tests.support.pairs import CPU, Counted, files, plan, sampled, teacher

MANY = {"train": 950, "solver": FixedSolver(kind="heun", steps=2)}
FORK = multiprocessing.get_context("fork")


def start(path: Path, pause: float) -> BaseProcess:
    """A process that fills a store, with a pause after each shard."""

    def fill() -> None:
        store = PairStore.open(path, writable=True)
        sample_pairs(store, teacher(), CPU, lambda pairs: time.sleep(pause))

    process = FORK.Process(target=fill)
    process.start()
    return process


def test_three_writers_one_of_them_killed_twenty_times(tmp_path: Path) -> None:
    """The arrays, and the files to the byte, are those that one undisturbed writer makes."""
    alone = sampled(tmp_path / "a", **MANY)
    path = tmp_path / "b"
    PairStore.create(path, plan(**MANY), {})
    chance = random.Random(0)
    workers = [start(path, 0.03) for _ in range(3)]
    kills = 0
    while kills < 20:
        time.sleep(chance.uniform(0.0, 0.08))
        victim = workers.pop(chance.randrange(3))
        kills += victim.is_alive()
        victim.kill()
        victim.join()
        if not victim.exitcode and kills < 20:  # finished too early: some work again
            shutil.rmtree(path / "index/c", ignore_errors=True)
        workers.append(start(path, 0.03))
    for worker in workers:
        worker.join()
    store = PairStore.open(path, writable=True)
    sample_pairs(store, teacher(), CPU)
    assert store.content_hash() == alone.content_hash()
    assert files(path) == files(tmp_path / "a")
    assert not claims_folder(path).exists()


def test_parts_are_disjoint_and_all(tmp_path: Path) -> None:
    whole = sampled(tmp_path / "a")
    for n in (1, 2, 3, 8):
        parts = [list(shards_of_part(whole.spec, (k, n))) for k in range(1, n + 1)]
        assert sum(parts, []) == list(range(6))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    store = PairStore.create(tmp_path / "b", plan(), {})
    sample_pairs(store, teacher(), CPU, part=(2, 3))
    assert store.missing_shards() == [0, 1, 4, 5]
    for k in (1, 3):
        sample_pairs(store, teacher(), CPU, part=(k, 3))
    assert files(tmp_path / "b") == files(tmp_path / "a")
    with pytest.raises(KDMError, match="there is no part 4/3"):
        shards_of_part(whole.spec, (4, 3))


@contextmanager
def holding(path: Path, shard: int) -> Iterator[BaseProcess]:
    """Another process that has claimed a shard, and is killed in the end."""
    ready = FORK.Event()

    def hold() -> None:
        with claim(path, shard):
            ready.set()
            time.sleep(60)

    process = FORK.Process(target=hold)
    process.start()
    assert ready.wait(20)
    try:
        yield process
    finally:
        process.kill()
        process.join()


def test_a_shard_has_one_writer(tmp_path: Path) -> None:
    whole = sampled(tmp_path / "a")
    store = PairStore.create(tmp_path / "b", plan(), {})
    block, _ = sample_shard(store.spec, teacher(), 3, CPU)
    with holding(tmp_path / "b", 3) as other:
        message = rf"another process \(pid {other.pid}\) writes shard 3 of .*b: wait for it"
        with pytest.raises(KDMError, match=message):
            store.write_shard(3, block)
        with pytest.raises(KDMError, match=message):
            store.copy_shard(whole, 3)
        sample_pairs(store, teacher(), CPU)
        assert store.missing_shards() == [3]
    # Its holder was killed: nothing has to be mended.
    sample_pairs(store, teacher(), CPU)
    assert files(tmp_path / "b") == files(tmp_path / "a")
    assert not claims_folder(tmp_path / "b").exists()


def test_shards_of_others_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are given to workers when they are free, and not before."""
    monkeypatch.setattr(filling, "BUSY_S", 0.01)
    store = PairStore.create(tmp_path / "p", plan(), {})
    with holding(tmp_path / "p", 3) as other:
        rounds = filling.rounds(store, WHOLE, 20)
        assert next(rounds) == [0, 1, 2, 4, 5]
        sample_pairs(store, teacher(), CPU)
        assert list(filling.rounds(store, WHOLE, 0.1)) == []
        threading.Timer(0.2, other.kill).start()
        assert next(rounds) == [3]
    sample_pairs(store, teacher(), CPU)
    assert list(rounds) == []


def test_the_slower_of_two_writers_leaves_a_complete_shard_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Behind URLs, where nothing keeps two of them from the same shard."""
    store = PairStore.create("memory://slower/p.zarr", plan(), {})
    discarded: list[int] = []
    monkeypatch.setattr(store, "discard_shard", discarded.append)

    class Overtaken(Counted):
        def sample(self, *args: object, **kwargs: object) -> object:
            if not self.batches:
                sampler(PairStore.open(store.location, writable=True), teacher(), CPU)(2)
            return super().sample(*args, **kwargs)

    found = sampler(store, Overtaken(), CPU)(2)  # type: ignore[arg-type]
    assert found == (True, 5)
    assert not discarded
    assert store.is_complete(2)


def test_leftovers_of_living_writers_stay(tmp_path: Path) -> None:
    store = sampled(tmp_path / "b")
    left = [tmp_path / "b/noise/c/3/0/0/0.ab.partial", tmp_path / "b/index/c/2.cd.partial"]
    for file in left:
        file.write_bytes(b"half")
    with holding(tmp_path / "b", 3):
        store.remove_leftovers()
        assert [file.exists() for file in left] == [True, False]
    store.remove_leftovers()
    assert not left[0].exists()


def test_claims_exclude_each_other_under_contention(tmp_path: Path) -> None:
    """Files come and go while others wait for them: never are there two holders."""
    inside, seen, errors = [0], [0], []

    def compete() -> None:
        for _ in range(300):
            with try_claim(tmp_path / "p", 0) as ours:
                if ours:
                    inside[0] += 1
                    if inside[0] != 1:
                        errors.append(inside[0])
                    seen[0] += 1
                    inside[0] -= 1

    threads = [threading.Thread(target=compete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert seen[0] > 100


def test_two_processes_make_the_store_once(tmp_path: Path) -> None:
    def create() -> None:
        try:
            PairStore.create(tmp_path / "p", plan(), {})
        except DataError:
            os._exit(7)

    makers = [FORK.Process(target=create) for _ in range(4)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert sorted(maker.exitcode or 0 for maker in makers) == [0, 7, 7, 7]
    assert PairStore.open(tmp_path / "p").missing_shards() == list(range(6))
    assert [file.name for file in tmp_path.iterdir()] == ["p"]


class Interrupted:
    """An array of which something happens before it is read for the first time."""

    def __init__(self, array: Any, first: Callable[[], None]) -> None:
        self.array, self.first = array, first

    def __getitem__(self, key: slice) -> Any:
        self.first()
        return self.array[key]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.array, name)


@pytest.mark.parametrize("place", ["noise", "sample", "label", "index"])
def test_a_reader_never_sees_a_mixed_shard(tmp_path: Path, place: str) -> None:
    """A shard is written with other values while it is read: they are all new, or none is read."""
    store = PairStore.create(tmp_path / "p", plan(), {})
    old, new = (Block(np.full((16, 1, 4, 4), k, np.float16), np.full((16, 1, 4, 4), k, np.uint8),
                      np.full(16, k), np.arange(16)) for k in range(2))
    store.write_shard(0, old)
    reader = PairStore.open(tmp_path / "p")
    reader.arrays[place] = Interrupted(reader.arrays[place], lambda: store.write_shard(0, new))
    with pytest.raises(DataError, match="were written again while they were read"):
        reader.read(range(16))
    found = PairStore.open(tmp_path / "p").read(range(16))
    for name in ("noise", "sample", "label"):
        np.testing.assert_array_equal(getattr(found, name), getattr(new, name))


def find_kept(stream: str, say: Callable[[str], None]) -> PairStore | None:
    """The kept store of a stream, if there is one."""
    return next((one for one in stores_there(None, say) if one.spec.stream == stream), None)


@given(old=st.integers(1, 120), new=st.integers(1, 120),
       noise=st.sampled_from(["stored", "seeded"]))
@example(old=70, new=150, noise="stored")
@example(old=65, new=66, noise="seeded")  # the last shard has one pair, then two
@example(old=66, new=65, noise="stored")
@settings(max_examples=12,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_growing_samples_the_rest_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: int, new: int, noise: str
) -> None:
    """And gives the bytes of sampling all at once; shrinking samples nothing."""
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    said: list[str] = []
    before = sampled(Path("a"), train=old, noise=noise)
    keep(Path("a"), "key", said.append)
    shutil.rmtree("a")  # as DVC does
    fresh = sampled(Path("fresh"), train=new, noise=noise)
    kept = find_kept(fresh.spec.stream, said.append)
    assert kept is not None
    store = PairStore.create(Path("b"), fresh.spec, {})
    counted = Counted()
    taken = adopt(store, kept, counted, CPU, said.append)  # type: ignore[arg-type]
    sample_pairs(store, counted, CPU)  # type: ignore[arg-type]
    assert files(Path("b")) == files(Path("fresh"))
    assert taken == min(before.spec.count, fresh.spec.count)
    # Batches of 8 of which not all pairs were there.
    needed = range(before.spec.count // 8, -(-fresh.spec.count // 8)) if new > old else ()
    assert counted.batches == len(needed)
    assert not said


def test_kept_files_take_no_space_and_only_the_last_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    sampled(Path("a"))
    keep(Path("a"), "one", said.append)
    (tmp_path / "data/work/kept_pairs/.new").mkdir()  # a killed attempt
    keep(Path("a"), "two", said.append)
    assert [folder.name for folder in Path("data/work/kept_pairs").iterdir()] == ["two"]
    assert all(file.samefile(Path("data/work/kept_pairs/two") / name)
               for name, file in ((n, Path("a") / n) for n in files(Path("a"))))
    assert find_kept(plan(chunk=8).stream, said.append) is None
    assert not said

    shutil.copytree("a", "copy")  # as DVC's own, in the place of the output
    link_anew(PairStore.open(Path("copy")), said.append)
    assert all(file.samefile(Path("data/work/kept_pairs/two") / name)
               for name, file in ((n, Path("copy") / n) for n in files(Path("copy"))))
    link_anew(sampled(Path("larger"), train=90), said.append)  # others stay what they are
    assert find_kept(plan().stream, said.append).spec == plan()
    assert not said

    def impossible(*args: object, **kwargs: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", impossible)
    keep(Path("a"), "three", said.append)
    assert "hard links are impossible here" in said[0]
    assert [folder.name for folder in Path("data/work/kept_pairs").iterdir()] == ["two"]


def test_damage_in_what_was_kept_is_sampled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    store = sampled(Path("a"))
    keep(Path("a"), "key", said.append)
    victim = Path("data/work/kept_pairs/key/sample/c/1/0/0/0")
    content = bytearray(victim.read_bytes())
    content[5] ^= 1
    victim.unlink()
    victim.write_bytes(content)
    kept = find_kept(store.spec.stream, said.append)
    assert kept is not None
    grown = PairStore.create(Path("b"), plan(train=150), {})
    assert adopt(grown, kept, teacher(), CPU, said.append) == 85 - 16
    assert len(said) == 1
    assert "damaged" in said[0]
    assert grown.missing_shards()[0] == 1
    sample_pairs(grown, teacher(), CPU)
    assert grown.content_hash() == sampled(Path("c"), train=150).content_hash()


def test_adoption_survives_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeping and taking over, killed at random instants and done again."""
    monkeypatch.chdir(tmp_path)
    fresh = sampled(Path("fresh"), train=500)
    sampled(Path("a"), train=400)
    key = "key"

    def grow() -> None:
        keep(Path("a"), key, print)
        kept = find_kept(fresh.spec.stream, print)
        store = PairStore.open(Path("b"), writable=True)
        assert kept is not None
        adopt(store, kept, teacher(), CPU, print)
        sample_pairs(store, teacher(), CPU)

    PairStore.create(Path("b"), fresh.spec, {})
    chance = random.Random(1)
    for _ in range(8):
        process = FORK.Process(target=grow)
        process.start()
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        process.join()
        files_of_a = PairStore.open(Path("a")).content_hash()
    assert files_of_a == PairStore.open(Path("a")).content_hash()
    grow()
    assert files(Path("b")) == files(Path("fresh"))


@pytest.mark.parametrize("states", [0, 2])
def test_seeded_noise_reads_the_same(tmp_path: Path, states: int) -> None:
    stored, seeded = (sampled(tmp_path / noise, noise=noise, states=states)
                      for noise in ("stored", "seeded"))
    assert not (tmp_path / "seeded/noise").exists()
    assert seeded.spec.stream != stored.spec.stream
    for split in ("test", "validation", "train"):
        for a, b in zip(read_split(stored, split, CPU, bool(states))[:3],
                        read_split(seeded, split, CPU, bool(states))[:3], strict=True):
            assert a.equal(b)
    for rows in (range(85), range(3, 40), range(84, 85)):
        for a, b in zip(stored.read(rows), seeded.read(rows), strict=True):
            np.testing.assert_array_equal(a, b)
    assert seeded.content_hash() == sampled(tmp_path / "again", noise="seeded",
                                            states=states).content_hash()


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own, where this user may mount one."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
                             capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount here")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "400k") as disk:
        store = PairStore.create(disk / "p", plan(**MANY), {})
        with pytest.raises(DataError, match=r"cannot write shard \d.*No space left on device"):
            sample_pairs(store, teacher(), CPU)
        missing = store.missing_shards()
        assert 0 < len(missing) < store.spec.num_shards
        assert store.read(range(16)).index.tolist() == list(range(16))
        remount(disk, "size=10m")
        sample_pairs(store, teacher(), CPU)
        sampled(tmp_path / "a", **MANY)
        assert files(disk / "p") == files(tmp_path / "a")
        assert [file.name for file in disk.iterdir()] == ["p"]


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount here")
def test_a_disk_that_may_only_be_read(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "10m") as disk:
        store = PairStore.create(disk / "p", plan(), {})
        sample_pairs(store, teacher(), CPU, part=(1, 2))
        remount(disk, "ro")
        with pytest.raises(DataError, match="Read-only file system; free some space or check"):
            sample_pairs(store, teacher(), CPU)
        with pytest.raises(DataError, match="Read-only file system"):
            PairStore.create(disk / "q", plan(), {})
        assert PairStore.open(disk / "p").read(range(48)).index.tolist() == list(range(48))


def test_a_disk_without_room_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 values of 2 + 1 bytes, a label and an index are 64 bytes a pair."""
    store = PairStore.create(tmp_path / "p", plan(), {})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=6399))
    require_space(store, 99)
    with pytest.raises(DataError, match="make room, take fewer pairs or another place"):
        require_space(store, 100)


def test_values_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    store = PairStore.create(tmp_path / "p", plan(sample_dtype="float32", states=1), {})
    block, _ = sample_shard(store.spec, teacher(), 1, CPU)
    assert block.trajectory is not None
    for name in ("noise", "sample", "trajectory"):
        values = getattr(block, name).copy()
        values.flat[7] = np.inf if name == "noise" else np.nan
        with pytest.raises(DataError, match=f"the {name} of pairs 16 to 32 .* nothing written"):
            store.write_shard(1, block._replace(**{name: values}))
    assert store.missing_shards() == list(range(6))


def test_signals_do_not_confuse_the_claims(tmp_path: Path) -> None:
    """A stopped holder is a living one; its claim lasts until it is gone."""
    store = PairStore.create(tmp_path / "p", plan(), {})
    with holding(tmp_path / "p", 0) as other:
        assert other.pid
        os.kill(other.pid, signal.SIGSTOP)
        with try_claim(store.location, 0) as ours:
            assert not ours
    with try_claim(store.location, 0) as ours:
        assert ours
