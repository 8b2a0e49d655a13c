"""Whether stores are whole: damage of every kind is found, and repaired to the last bit."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from kdm_core.errors import DataError, MismatchError
from kdm_core.pairs.integrity import repairing
from kdm_core.pairs.integrity.metadata import foreign_files, list_files, restore_metadata
from kdm_core.pairs.integrity.repairing import load_recorded, repair
from kdm_core.pairs.integrity.shards import fetch, replace
from kdm_core.pairs.integrity.verifying import Damage, as_ranges, disordered, find_exchanged, verify
from kdm_core.pairs.keep import KeepMask
from kdm_core.pairs.sampling import sample_batch, sample_shard
from kdm_core.pairs.spec import Subset
from kdm_core.pairs.store import PairStore
from kdm_core.serialization import fingerprint
from kdm_core.teachers import save_teacher
from tests.support.pairs import CPU, FIXTURES, PAIRS, SIZES, flip, plan, shard_path, small, teacher


# In shards of 16, chunks of 4 and compute batches of 8.
@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kept") / "p"
    small(path, states=1)
    return path


@pytest.fixture
def copied(kept: Path, tmp_path: Path) -> PairStore:
    """A store with states, to be damaged."""
    shutil.copytree(kept, tmp_path / "p")
    return PairStore.open(tmp_path / "p", writable=True)


def lost(store: PairStore, damage: Damage) -> dict[str, list[tuple[int, int]]]:
    return {name: [(rows.start, rows.stop) for rows in ranges]
            for name, ranges in damage.ranges(store.spec).items()}


def mend(store: PairStore, **sources: object) -> Damage:
    repair(store, verify(store), CPU, **sources)  # type: ignore[arg-type]
    return verify(store)


@pytest.mark.parametrize("changes", [
    {}, {"noise": "seeded"}, {"states": 2}, {"sample_dtype": "float32", "noise_dtype": "float32"}])
def test_a_whole_store_is_whole(tmp_path: Path, changes: dict[str, object]) -> None:
    store, told = small(tmp_path / "p", **changes), []
    damage = verify(store, told.append)
    assert damage.whole
    assert damage == Damage({}, [], [], [], store.content_hash())
    assert told == [16, 16, 3]
    assert find_exchanged(store, teacher(), CPU) == {}


def test_each_of_200_flipped_bits_is_found_and_repaired(tmp_path: Path) -> None:
    """One at a time they are found, 40 at a time repaired: every file is what it was."""
    store, rng = small(tmp_path / "p", train=13), random.Random(0)
    files = [(name, shard, shard_path(store, name, shard)) for name in store.arrays
             for shard in range(2)]
    good = {path: path.read_bytes() for _, _, path in files}
    for _ in range(5):
        changed = dict(good)
        for _ in range(40):
            name, shard, path = rng.choice(files)
            place, bit = rng.randrange(len(good[path])), rng.randrange(8)
            for contents in (changed, flipped := {path: good[path]}):
                content = bytearray(contents[path])
                content[place] ^= 1 << bit
                contents[path] = bytes(content)
            path.write_bytes(flipped[path])
            damage = verify(store)
            assert list(damage.shards) == [shard], (name, shard, place)
            assert list(damage.shards[shard]) == [name]
            # A chunk, or all of the shard where its index of chunks was hit.
            pairs, in_index = (16, 2)[shard], place >= len(good[path]) - 68
            assert damage.pairs == (pairs if in_index else min(4, pairs))
            path.write_bytes(good[path])
        for path, contents in changed.items():
            path.write_bytes(contents)
        repair(store, verify(store), CPU, teacher())
        assert {path: path.read_bytes() for path in good} == good


@pytest.mark.parametrize("changes", [{"states": 1}, {"noise": "seeded"}])
def test_many_flips_at_once(tmp_path: Path, changes: dict[str, object]) -> None:
    store, rng = small(tmp_path / "p", **changes), random.Random(1)
    whole = store.content_hash()
    for _ in range(25):
        path = shard_path(store, rng.choice(sorted(store.arrays)), rng.randrange(3))
        flip(path, rng.randrange(path.stat().st_size), rng.randrange(8))
    assert not verify(store).whole
    assert mend(store, teacher=teacher()).content == whole


def remove(path: Path, others: list[Path]) -> None:
    path.unlink()


def empty(path: Path, others: list[Path]) -> None:
    path.write_bytes(b"")


def truncate(path: Path, others: list[Path]) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def cut_front(path: Path, others: list[Path]) -> None:
    path.write_bytes(path.read_bytes()[9:])


def append(path: Path, others: list[Path]) -> None:
    path.write_bytes(path.read_bytes() + b"\0" * 16)


def insert_before_index(path: Path, others: list[Path]) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-68] + b"unseen" + content[-68:])


def other_array(path: Path, others: list[Path]) -> None:
    path.write_bytes(others[0].read_bytes())


@pytest.mark.parametrize("name", ["noise", "sample", "trajectory", "label", "index"])
@pytest.mark.parametrize("harm", [remove, empty, truncate, cut_front, append,
                                  insert_before_index, other_array])
def test_a_shard_that_is_not_what_it_was(
    copied: PairStore, name: str, harm: Callable[[Path, list[Path]], None]
) -> None:
    store, whole = copied, copied.content_hash()
    others = [shard_path(store, other, 1) for other in store.arrays if other != name]
    harm(shard_path(store, name, 1), others)
    damage = verify(store)
    assert list(damage.shards) == [1]
    assert list(damage.shards[1]) == [name]
    assert damage.shards[1][name].any()
    assert damage.missing == ([1] if name == "index" and harm in (remove, empty) else [])
    assert damage.needs_teacher == (name in ("sample", "trajectory"))
    if harm in (remove, empty):
        with pytest.raises(DataError, match="not complete|damaged"):
            store.read(range(16, 20))
    assert mend(store, teacher=teacher() if damage.needs_teacher else None).content == whole


@pytest.mark.parametrize("name", ["noise", "sample", "trajectory", "label", "index"])
def test_a_shard_copied_over_another(copied: PairStore, name: str) -> None:
    store, whole = copied, copied.content_hash()
    shutil.copy(shard_path(store, name, 0), shard_path(store, name, 1))
    damage = verify(store)
    # Which of two files of samples is the right one cannot be told.
    both = name in ("sample", "trajectory")
    assert list(damage.shards) == ([0, 1] if both else [1])
    assert all(list(some) == [name] for some in damage.shards.values())
    assert mend(store, teacher=teacher()).content == whole


@pytest.mark.parametrize(("name", "changes"), [
    ("sample", {}), ("sample", {"sample_dtype": "float32"}), ("trajectory", {"states": 1})])
def test_files_that_changed_places(tmp_path: Path, name: str, changes: dict[str, object]) -> None:
    store = small(tmp_path / "p", **changes)
    whole = store.content_hash()
    one, two = (shard_path(store, name, shard) for shard in (0, 1))
    one.rename(tmp_path / "x")
    two.rename(one)
    (tmp_path / "x").rename(two)
    damage = verify(store)
    assert damage.whole  # there is no contradiction in the store
    found = find_exchanged(store, teacher(), CPU)
    assert found == {name: [0, 1]}
    damage = damage.losing(store.spec, name, found[name])
    assert not damage.whole
    assert lost(store, damage) == {name: [(0, 32)]}
    repair(store, damage, CPU, teacher())
    assert store.content_hash() == whole


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    """With a checksum that fits, as another program may have written them."""
    store = small(tmp_path / "p", sample_dtype="float32")
    whole = store.content_hash()
    values = store.arrays["sample"][16:32]
    values[5, 0, 1, 2] = np.nan
    values[6, 0, 0, 0] = np.inf
    replace(store, "sample", 1, values)
    assert lost(store, verify(store)) == {"sample": [(21, 23)]}
    assert mend(store, teacher=teacher()).content == whole


def test_a_store_that_is_not_complete(tmp_path: Path) -> None:
    store = PairStore.create(tmp_path / "p", plan(**SIZES), {})
    store.write_shard(1, sample_shard(store.spec, teacher(), 1, CPU)[0])
    damage = verify(store)
    assert damage.missing == [0, 2]
    assert damage.pairs == 19
    assert lost(store, damage) == {}
    assert mend(store, teacher=teacher()).content == small(tmp_path / "q").content_hash()


def test_only_lost_batches_are_sampled_again(
    copied: PairStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, whole, batches = copied, copied.content_hash(), []
    flip(shard_path(store, "sample", 1), 3)  # pairs 16 to 20
    flip(shard_path(store, "trajectory", 1), 3)
    flip(shard_path(store, "noise", 1), 400)  # pairs 28 to 32

    def counted(*arguments: object) -> object:
        batches.append(arguments[2])
        return sample_batch(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(repairing, "sample_batch", counted)
    assert mend(store, teacher=teacher()).content == whole
    assert batches == [2]


def test_a_repair_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = small(tmp_path / "p")
    flip(shard_path(store, "sample", 1), 3)
    before, damage = shard_path(store, "sample", 1).read_bytes(), verify(store)

    def no_space(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zarr.storage._local._put", no_space)
    with pytest.raises(DataError, match="No space left on device"):
        repair(store, damage, CPU, teacher())
    assert shard_path(store, "sample", 1).read_bytes() == before
    assert lost(store, verify(store)) == {"sample": [(16, 20)]}


def test_samples_need_their_teacher(tmp_path: Path) -> None:
    store = small(tmp_path / "p")
    flip(shard_path(store, "sample", 1), 3)
    with pytest.raises(DataError, match="sample of 4 pairs from 16 on is lost; only their teacher"):
        repair(store, verify(store), CPU)
    save_teacher(tmp_path / "teacher", teacher())
    with pytest.raises(MismatchError, match="is not the teacher of these pairs.*theirs ffffffff"):
        load_recorded(tmp_path / "teacher", store.spec)


def test_repair_from_another_copy(tmp_path: Path) -> None:
    """Or a longer store of the same stream, of which nothing damaged is taken over."""
    store, copy, longer = (small(tmp_path / name, **changes) for name, changes in (
        ("p", {}), ("q", {}), ("r", {"train": 40})))
    whole = store.content_hash()
    for other in (copy, longer):
        flip(shard_path(store, "sample", 1), 3)
        shard_path(store, "noise", 2).unlink()
        assert mend(store, other=other).content == whole
    flip(shard_path(store, "sample", 1), 3)
    flip(shard_path(copy, "sample", 1), 4)
    with pytest.raises(DataError, match="only their teacher"):
        repair(store, verify(store), CPU, other=copy)
    assert mend(store, other=copy, teacher=teacher()).content == whole
    with pytest.raises(MismatchError, match=r"q is no copy of .*: it holds the pairs"):
        repair(small(tmp_path / "s", states=1), verify(store), CPU, other=copy)


def imported(store: PairStore, path: Path, **changes: object) -> PairStore:
    """The same pairs in a store that says otherwise where they are from."""
    made = PairStore.create(path, store.spec.model_copy(update=changes), {})
    for shard in range(store.spec.num_shards):
        made.write_shard(shard, store.read(store.spec.shard_range(shard)))
    return made


def test_imported_pairs_are_repaired_from_a_copy_alone(tmp_path: Path) -> None:
    given = {"noise_seed": None, "solver": None, "teacher": None, "imported": "x.npz"}
    store, copy = (imported(small(tmp_path / f"{name}0"), tmp_path / name, **given)
                   for name in "pq")
    whole = store.content_hash()
    flip(shard_path(store, "noise", 0), 3)
    shutil.copy(shard_path(store, "label", 0), shard_path(store, "label", 1))  # nothing tells
    shutil.copy(shard_path(store, "sample", 1), shard_path(store, "sample", 0))
    shutil.copy(shard_path(store, "noise", 1), shard_path(store, "noise", 2))
    damage = verify(store)
    assert lost(store, damage) == {"noise": [(0, 4), (16, 35)], "sample": [(0, 32)]}
    with pytest.raises(DataError, match=r"imported from x\.npz, import them again"):
        repair(store, damage, CPU)
    with pytest.raises(MismatchError, match=r"imported from x\.npz"):
        load_recorded(tmp_path, store.spec)
    shutil.copy(shard_path(copy, "label", 1), shard_path(store, "label", 1))
    assert mend(store, other=copy).content == whole


def test_repair_of_a_subset(tmp_path: Path) -> None:
    """Its indices say which pairs of the stream they are."""
    source = small(tmp_path / "p")
    rows = [0, 2, *range(5, 33, 2)]
    spec = source.spec.model_copy(update={
        "splits": {"test": 2, "validation": 0, "train": 14},
        "subset": Subset(pairs=source.spec.fingerprint, rule="some")})
    part = PairStore.create(tmp_path / "q", spec, {})
    block = source.read(range(PAIRS))
    part.write_shard(0, block._replace(**{name: getattr(block, name)[rows] for name in (
        "noise", "sample", "label", "index")}))
    whole = part.content_hash()
    for name in ("noise", "sample", "label"):
        flip(shard_path(part, name, 0), 3)
    assert lost(part, verify(part)) == {name: [(0, 4)] for name in ("noise", "sample", "label")}
    assert mend(part, teacher=teacher()).content == whole
    shutil.copytree(tmp_path / "q", tmp_path / "copy")
    flip(shard_path(part, "index", 0), 3)
    with pytest.raises(DataError, match="index of 4 pairs .* take the subset again"):
        repair(part, verify(part), CPU, teacher())
    assert mend(part, other=PairStore.open(tmp_path / "copy")).content == whole


def test_indices_of_a_subset_ascend() -> None:
    spec = plan(**SIZES).model_copy(update={"subset": Subset(pairs="x", rule="y")})
    index, known = np.arange(PAIRS) * 2, np.ones(PAIRS, bool)
    index[3:] -= 6  # validation begins again at 0, which is no matter
    index[5:] += 6
    assert disordered(spec, index, known) == []
    swapped = index.copy()
    swapped[16:32], swapped[32:] = index[19:35], index[16:19]
    assert disordered(spec, swapped, known) == [1, 2]
    known[32:] = False
    assert disordered(spec, swapped, known) == []


@pytest.mark.parametrize(("name", "old", "new", "said"), [
    ("label", '"fill_value": -1', '"fill_value": 1', "label was altered (fill_value)"),
    ("noise", '"little"', '"big"', "noise was altered (codecs)"),
    ("sample", '"separator": "/"', '"separator": "."', "sample was altered (chunk_key_encoding)"),
])
def test_an_altered_description_is_found_and_restored(
    tmp_path: Path, name: str, old: str, new: str, said: str
) -> None:
    whole = small(tmp_path / "p").content_hash()
    file = tmp_path / "p" / name / "zarr.json"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    damage = verify(PairStore.open(tmp_path / "p"))
    assert not damage.whole
    assert damage.metadata == [f"the description of {said}"]
    restored = restore_metadata(PairStore.open(tmp_path / "p", writable=True))
    assert verify(restored).content == whole


def test_altered_times_are_found_and_restored(tmp_path: Path) -> None:
    store = small(tmp_path / "p", states=2)
    for harm in (lambda path: flip(path, 2), Path.unlink):
        harm(tmp_path / "p/times/c/0")
        assert verify(store).metadata == ["times was altered"]
        store = restore_metadata(store)
        assert verify(store).whole


@pytest.mark.parametrize("text", ["", "{", '{"zarr_format": 3, "node_type": "array"}'])
def test_a_description_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    small(tmp_path / "p")
    (tmp_path / "p/noise/zarr.json").write_text(text)
    with pytest.raises(DataError, match="damaged"):
        PairStore.open(tmp_path / "p")


def test_files_of_others_do_no_harm(tmp_path: Path) -> None:
    store = small(tmp_path / "p")
    store.mask = KeepMask(store.spec.fingerprint, ["a"], np.zeros(PAIRS, np.uint16))
    store.mask.write(store.group)
    (tmp_path / "p/notes.txt").write_text("mine")
    (tmp_path / "p/sample/c/7").mkdir()
    (tmp_path / "p/sample/c/7/0").write_text("?")
    damage = verify(PairStore.open(tmp_path / "p"))
    assert damage.whole
    assert damage.foreign == ["notes.txt", "sample/c/7/0"]


def test_a_mask_of_other_pairs(tmp_path: Path) -> None:
    store = small(tmp_path / "p")
    KeepMask("0" * 64, ["a"], np.zeros(PAIRS, np.uint16)).write(store.group)
    damage = verify(PairStore.open(tmp_path / "p"))
    assert damage.metadata == ["the mask is of other pairs: filter again"]
    assert not damage.whole


def test_stores_behind_urls(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    store = small("memory://integrity/p", states=1)
    whole = store.content_hash()
    assert verify(store).content == whole
    assert foreign_files(store) == []
    assert (list_files(store) or {})["index/c/0"] == len(fetch(store, "index", 0) or ())
    store.discard_shard(2)
    assert verify(store).missing == [2]
    assert mend(store, teacher=teacher()).content == whole


def test_another_numpy_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = small(tmp_path / "p")
    monkeypatch.setattr("kdm_core.pairs.integrity.verifying.DRAWN", "0" * 64)
    with pytest.raises(MismatchError, match=rf"numpy .* draws other noise .* {np.__version__}"):
        verify(store)


def test_ranges() -> None:
    assert as_ranges([]) == []
    assert as_ranges([0, 1, 2, 5, 7, 8]) == [range(3), range(5, 6), range(7, 9)]


@pytest.mark.parametrize(("name", "content", "mark", "noise", "sample"), [
    ("labelled", "88403f76692856506c547864e0c765b05319633d873c8ab4c34392df1e34a01a",
     "68a4a84a23150087af2852e3a84d8eab00b80c813f0ce8395e1db82c56885384",
     [-0.11883544921875, -1.248046875], [85, 0]),
    ("points", "9f26d15e3e737e3734329ec01c2c8b46c8a16a94022af0ff659508c2d5862473",
     "05c2adb1e1ca75fa4802f5650a9c88a36b1c6188407bf32cde9d4d87d5f17155",
     [-0.11883173137903214, -1.2478160858154297], [-1.7575186491012573, -4.043075084686279]),
])
def test_stores_of_schema_version_1_are_read(
    tmp_path: Path, name: str, content: str, mark: str, noise: list[float], sample: list[float]
) -> None:
    """Written by the version before stores could have seeded noise, masks or parts."""
    shutil.copytree(FIXTURES / name, tmp_path / "p")
    store = PairStore.open(tmp_path / "p")
    assert verify(store).content == store.content_hash() == content
    assert store.spec.fingerprint == mark
    kept = zarr.open_group(tmp_path / "p", mode="r").attrs["kdm_pairs"]
    assert fingerprint(kept["spec"]) == mark  # type: ignore[call-overload,index]
    block = store.read(range(store.spec.count))
    assert block.noise[5].ravel()[:2].tolist() == noise
    assert block.sample[5].ravel()[:2].tolist() == sample
    assert block.index.tolist() == list(range(24))
    if name == "labelled":
        assert block.label.tolist() == [0, 1, 0, 1, 0, 0, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 1,
                                        1, 1, 1, 0, 0, 1]
    else:
        assert block.label.tolist() == [-1] * 24
        assert block.trajectory is not None
        assert block.trajectory[5].ravel().tolist() == [-0.55859375, -2.60546875]
    writable = PairStore.open(tmp_path / "p", writable=True)
    for array in ("noise", "index"):
        flip(shard_path(writable, array, 0), 3)
    assert mend(writable).content == content
