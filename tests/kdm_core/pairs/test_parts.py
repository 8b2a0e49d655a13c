"""Stores made of stores: merging parts, taking subsets."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from kdm_core.errors import DataError, MismatchError
from kdm_core.pairs.integrity.verifying import verify
from kdm_core.pairs.keep import KeepMask
from kdm_core.pairs.merging import merge
from kdm_core.pairs.sampling import sample_pairs, sample_shard
from kdm_core.pairs.store import PairStore
from kdm_core.pairs.subsets import Selection, select, subset
from tests.support.pairs import CPU, FIXTURES, PAIRS, SIZES, flip, plan, shard_path, small, teacher


def part(path: Path, shards: list[int], machine: str = "a", **changes: object) -> PairStore:
    store = PairStore.create(path, plan(**{**SIZES, **changes}), {"machine": machine, "torch": "2"})
    for shard in shards:
        store.write_shard(shard, sample_shard(store.spec, teacher(), shard, CPU)[0])
    return store


@pytest.mark.parametrize("changes", [{}, {"noise": "seeded", "states": 1}])
def test_parts_become_the_whole(tmp_path: Path, changes: dict[str, object]) -> None:
    parts = [part(tmp_path / "a", [0, 2], **changes), part(tmp_path / "b", [1], "b", **changes)]
    told: list[int] = []
    merged = merge(parts, tmp_path / "m", told.append)
    assert sorted(told) == [3, 16, 16]
    whole = small(tmp_path / "w", **changes).content_hash()
    assert merged.content_hash() == verify(merged).content == whole
    assert PairStore.open(tmp_path / "m").provenance == {
        "torch": "2", "merged": [store.provenance for store in parts]}


def test_an_incomplete_union_can_be_completed(tmp_path: Path) -> None:
    merged = merge([part(tmp_path / "a", [1])], tmp_path / "m")
    assert merged.missing_shards() == [0, 2]
    merge([part(tmp_path / "b", [0])], tmp_path / "m")
    sample_pairs(merged, teacher(), CPU)
    assert merged.content_hash() == small(tmp_path / "w").content_hash()


def test_what_does_not_belong_together_is_not_merged(tmp_path: Path) -> None:
    one = part(tmp_path / "a", [0, 1])
    with pytest.raises(MismatchError, match=r"a and .*b overlap: both have the pairs 16:32;"):
        merge([one, part(tmp_path / "b", [1, 2])], tmp_path / "m")
    with pytest.raises(MismatchError, match=r"splits .*'train': 31.*wanted.*'train': 30"):
        merge([one, part(tmp_path / "c", [2], train=31)], tmp_path / "m")
    assert not (tmp_path / "m").exists()
    part(tmp_path / "n", [], states=1)
    with pytest.raises(MismatchError, match=r"n holds other pairs: states"):
        merge([one], tmp_path / "n")
    (tmp_path / "o").mkdir()
    with pytest.raises(DataError, match="o exists already"):
        merge([one], tmp_path / "o")


def test_damage_is_not_merged_and_an_interrupted_merge_goes_on(tmp_path: Path) -> None:
    parts = [part(tmp_path / "a", [0, 2]), part(tmp_path / "b", [1])]
    flip(shard_path(parts[1], "sample", 1), 3)
    with pytest.raises(DataError, match=r"b: pairs 16 to 32 are damaged.*repair"):
        merge(parts, tmp_path / "m")
    assert PairStore.open(tmp_path / "m").missing_shards() == [1, 2]
    before = (tmp_path / "m/sample/c/0/0/0/0").stat().st_mtime_ns
    flip(shard_path(parts[1], "sample", 1), 3)
    merged = merge(parts, tmp_path / "m")
    assert merged.content_hash() == small(tmp_path / "w").content_hash()
    assert (tmp_path / "m/sample/c/0/0/0/0").stat().st_mtime_ns == before


def taken(store: PairStore, path: Path, **rules: object) -> PairStore:
    selection = Selection.model_validate(rules)
    return subset(store, path, select(store, selection), selection.in_words())


def indices(store: PairStore) -> list[int]:
    return store.read(range(store.spec.count)).index.tolist()


@pytest.mark.parametrize("noise", ["stored", "seeded"])
def test_fewer_training_pairs_are_an_ordinary_store(tmp_path: Path, noise: str) -> None:
    """As if fewer had been sampled, and it grows like one."""
    store = small(tmp_path / "p", noise=noise)
    fewer = taken(store, tmp_path / "s", train=14)
    other = small(tmp_path / "t", noise=noise, train=14)
    assert fewer.spec == other.spec
    assert fewer.content_hash() == verify(fewer).content == other.content_hash()
    for name in fewer.arrays:
        assert shard_path(fewer, name, 0).read_bytes() == shard_path(store, name, 0).read_bytes()
    everything = taken(store, tmp_path / "u")
    assert everything.content_hash() == store.content_hash()


@pytest.mark.parametrize("noise", ["stored", "seeded"])
def test_other_subsets_keep_the_indices(tmp_path: Path, noise: str) -> None:
    store = small(tmp_path / "p", noise=noise, states=1)
    block = store.read(range(PAIRS))
    chosen = taken(store, tmp_path / "s", labels=[1], splits=["test", "train"], indices=(1, 34))
    expected = [i for i in range(1, 34) if block.label[i] == 1 and i not in (3, 4)]
    assert indices(chosen) == expected
    assert chosen.spec.splits == {"test": sum(i < 3 for i in expected), "validation": 0,
                                  "train": sum(i > 4 for i in expected)}
    assert chosen.spec.subset is not None
    assert chosen.spec.subset.pairs == store.spec.fingerprint
    assert chosen.spec.subset.rule == "splits test, train; indices 1:34; labels 1"
    found = chosen.read(range(chosen.spec.count))
    for name in ("noise", "sample", "label", "trajectory"):
        np.testing.assert_array_equal(getattr(found, name), getattr(block, name)[expected])
    assert verify(chosen).content == chosen.content_hash()
    again = taken(chosen, tmp_path / "t", indices=(9, 30))
    assert indices(again) == [i for i in expected if 9 <= i < 30]
    assert again.spec.subset is not None
    assert again.spec.subset.pairs == store.spec.fingerprint
    assert again.spec.subset.rule.endswith("labels 1; of these: indices 9:30")
    assert verify(again).whole
    first = taken(chosen, tmp_path / "u", train=2)  # no prefix of the stream
    assert indices(first) == [i for i in expected if i < 3] + [i for i in expected if i > 4][:2]
    assert taken(chosen, tmp_path / "v").spec == chosen.spec


def test_what_a_mask_keeps(tmp_path: Path) -> None:
    """Test pairs are not masked, and the subset's mask still says what speaks against them."""
    store = small(tmp_path / "p")
    reasons = np.zeros(PAIRS, np.uint16)
    reasons[[0, 4, 7, 20]] = 1
    mask = KeepMask(store.spec.fingerprint, ["near"], reasons)
    with pytest.raises(DataError, match="no mask of its own"):
        select(store, Selection(kept=True))
    chosen = taken(store.masked(mask), tmp_path / "s", kept=True)
    assert indices(chosen) == [i for i in range(PAIRS) if i not in (4, 7, 20)]
    reopened = PairStore.open(tmp_path / "s")
    assert reopened.mask is not None
    assert reopened.mask.counts() == {"near": 1}
    assert np.flatnonzero(~reopened.mask.keep).tolist() == [0]
    assert verify(reopened).whole
    rest = taken(store.masked(mask), tmp_path / "t", indices=(5, 35))
    assert rest.mask is not None
    assert np.flatnonzero(~rest.mask.keep).tolist() == [2, 15]


@pytest.mark.parametrize(("rules", "said"), [
    ({"labels": [2]}, "has no label 2; it has 2, numbered from 0"),
    ({"indices": (30, 36)}, "has the indices 0 to 35, and not 30:36"),
    ({"indices": (5, 5)}, "and not 5:5"),
    ({"splits": ["train"], "indices": (0, 5)}, r"no pair fits \(splits train; indices 0:5\)"),
])
def test_what_cannot_be_selected(tmp_path: Path, rules: dict[str, object], said: str) -> None:
    store = small(tmp_path / "p")
    with pytest.raises(DataError, match=said):
        select(store, Selection.model_validate(rules))


def test_an_interrupted_subset_goes_on(tmp_path: Path) -> None:
    store = small(tmp_path / "p")
    chosen = taken(store, tmp_path / "s", indices=(2, 35))
    whole = chosen.content_hash()
    chosen.discard_shard(1)
    assert taken(store, tmp_path / "s", indices=(2, 35)).content_hash() == whole
    with pytest.raises(MismatchError, match="s holds other pairs: splits .*subset"):
        taken(store, tmp_path / "s", indices=(3, 35))
    flip(shard_path(store, "sample", 1), 3)
    with pytest.raises(DataError, match=r"p: pairs 16 to 18 are damaged"):
        taken(store, tmp_path / "t", indices=(2, 35))


def test_parts_of_stores_of_an_older_version(tmp_path: Path) -> None:
    """Whose files of labels are missing where there are none."""
    shutil.copytree(FIXTURES / "points", tmp_path / "p")
    store = PairStore.open(tmp_path / "p")
    merged = merge([store], tmp_path / "m")
    assert merged.content_hash() == store.content_hash()
    small = taken(store, tmp_path / "s", train=12)
    assert verify(small).whole
    assert zarr.open_group(tmp_path / "s", mode="r")["label"][:].tolist() == [-1] * 20  # type: ignore[index]
