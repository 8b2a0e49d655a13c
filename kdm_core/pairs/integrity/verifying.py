"""Whether a store is whole: every bit of it, and if not, which pairs are lost.

What is compared: each chunk with its checksum; `index` with the place where it stands; noise and
labels with what the seed gives, which also finds a file under another one's name; samples and
states with all other files, which finds one that was copied over another one. Two files of
samples that changed places have no contradiction in them: `find_exchanged` asks the teacher.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kdm_core.errors import DataError, MismatchError
from kdm_core.noise import check_value
from kdm_core.pairs.integrity.metadata import altered_metadata, foreign_files
from kdm_core.pairs.integrity.shards import decode, fetch
from kdm_core.pairs.sampling import sample_batch
from kdm_core.pairs.spec import SPLITS, StoreSpec
from kdm_core.pairs.store import Block, PairStore
from kdm_core.teachers.base import Teacher
from kdm_core.values import as_float

Lost = dict[str, NDArray[np.bool_]]
# What a teacher makes; the rest follows from the seed.
SOLVED = ("sample", "trajectory")
# `check_value` of this stream tells whether numpy draws the noise that all stores were made with.
STREAM: tuple[int, tuple[int], str] = (0, (64,), "float32")
DRAWN = "83cf12afba8b42cd80982153cbee9d923f65e6de5208c92e6e01f7f653c85028"
# A sample made again differs by rounding, one of another pair by about sqrt(2) sigma_data.
TOLERANCE = 0.25


class Damage(NamedTuple):
    """What is wrong with a store.

    Attributes:
        shards: for each shard that is not whole, which of its rows each array has lost, (rows,)
            bool; arrays that have lost none are left out.
        missing: shards that were never completed, or have lost their `index`; also in `shards`.
        metadata: what was altered besides the pairs, one sentence each.
        foreign: files among the store's that are not its own. They do no harm.
        content: the store's content hash; None if it is not whole.
    """

    shards: dict[int, Lost]
    missing: list[int]
    metadata: list[str]
    foreign: list[str]
    content: str | None

    @property
    def whole(self) -> bool:
        """Whether all pairs are there as they were written."""
        return not self.shards and not self.metadata

    @property
    def needs_teacher(self) -> bool:
        """Whether something is lost that does not follow from the seed."""
        return any(name in lost for lost in self.shards.values() for name in SOLVED)

    @property
    def pairs(self) -> int:
        """How many have lost anything."""
        return sum(int(np.any(list(lost.values()), axis=0).sum()) for lost in self.shards.values())

    def ranges(self, spec: StoreSpec) -> dict[str, list[range]]:
        """The rows that each array has lost in the shards that are not missing."""
        rows: dict[str, list[int]] = {}
        for shard, lost in sorted(self.shards.items()):
            if shard not in self.missing:
                for name, those in lost.items():
                    start = spec.shard_range(shard).start
                    rows.setdefault(name, []).extend((np.flatnonzero(those) + start).tolist())
        return {name: as_ranges(places) for name, places in rows.items()}

    def losing(self, spec: StoreSpec, name: str, shards: Iterable[int]) -> "Damage":
        """The same, and some shards have lost all of one array."""
        all_lost = {shard: {**self.shards.get(shard, {}),
                            name: np.ones(len(spec.shard_range(shard)), bool)}
                    for shard in shards}
        found = self._replace(shards={**self.shards, **all_lost})
        return found if found.whole else found._replace(content=None)


class CheckedShard(NamedTuple):
    """A shard that was read and compared with all that is known of it.

    Attributes:
        values: (rows, …) by array; of no meaning where they are lost.
        lost: (rows,) bool by array.
        marks: SHA-256 by array, of files that cannot be the same as another one.
        present: whether there is a file of `index`.
    """

    values: dict[str, NDArray[Any]]
    lost: Lost
    marks: dict[str, bytes]
    present: bool


def verify(store: PairStore, on_pairs: Callable[[int], None] = lambda pairs: None) -> Damage:
    """Read and check all of a store; `on_pairs` is told the pairs of each shard.

    Raises:
        DataError: it cannot be read (permissions, network).
        MismatchError: this numpy draws other noise than stores have.
    """
    require_noise(store)
    spec, names = store.spec, [name for name in Block._fields if name in store.arrays]
    shards: dict[int, Lost] = {}
    missing: list[int] = []
    index, known = np.empty(spec.count, np.int64), np.empty(spec.count, bool)
    owners: dict[bytes, list[tuple[str, int]]] = {}
    digest = hashlib.sha256(spec.fingerprint.encode())
    for shard in range(spec.num_shards):
        checked, rows = check_shard(store, shard), spec.shard_range(shard)
        if any(lost.any() for lost in checked.lost.values()):
            shards[shard] = {name: lost for name, lost in checked.lost.items() if lost.any()}
        if not checked.present:
            missing.append(shard)
        index[rows.start : rows.stop] = checked.values["index"]
        known[rows.start : rows.stop] = ~checked.lost["index"]
        for name, mark in checked.marks.items():
            owners.setdefault(mark, []).append((name, shard))
        for name in names:
            digest.update(np.ascontiguousarray(checked.values[name]).data)
        on_pairs(len(rows))
    damage = Damage(shards, missing, altered_metadata(store), foreign_files(store), None)
    for same in owners.values():
        for name, shard in same if len(same) > 1 else ():
            # The seed has told already whether noise is right.
            if name in SOLVED or spec.noise_seed is None:
                damage = damage.losing(spec, name, [shard])
    damage = damage.losing(spec, "index", disordered(spec, index, known))
    return damage._replace(content=digest.hexdigest() if damage.whole else None)


def require_noise(store: PairStore) -> None:
    """Make sure that noise is drawn as it was when stores were made.

    Raises:
        MismatchError: it is not; all noise would seem to be damaged.
    """
    if check_value(*STREAM) != DRAWN:
        raise MismatchError(f"numpy {np.__version__} draws other noise than pair stores have: use "
                            f"the one of {store.location}, "
                            f"{store.provenance.get('numpy', 'which is unknown')}")


def check_shard(store: PairStore, shard: int) -> CheckedShard:
    """Read a shard and compare it with all that is known of it.

    Raises:
        DataError: it cannot be read (permissions, network).
    """
    values: dict[str, NDArray[Any]] = {}
    lost: Lost = {}
    marks: dict[str, bytes] = {}
    for name in store.arrays:
        content = fetch(store, name, shard)
        values[name], intact = decode(store, name, shard, content)
        lost[name] = ~intact
        if values[name].dtype.kind == "f":
            flat = values[name].reshape(len(intact), -1)
            lost[name] |= ~np.isfinite(flat).all(axis=1)
        # Of a teacher that always makes the same, shards are the same, too.
        if (content is not None and name in ("noise", *SOLVED)
                and (values[name] != values[name][:1]).any()):
            marks[name] = hashlib.sha256(content.to_bytes()).digest()
    for name, wrong in contradictions(store, shard, values, lost["index"]).items():
        lost[name] |= wrong
    # The last file of the loop is that of `index`.
    return CheckedShard(values, lost, marks, content is not None)


def contradictions(
    store: PairStore, shard: int, values: dict[str, NDArray[Any]], unread: NDArray[np.bool_]
) -> Lost:
    """Which rows (rows,) hold something else than they must; `unread` are those of lost indices."""
    spec, rows, index = store.spec, store.spec.shard_range(shard), values["index"]
    found: Lost = {"index": index < 0}
    if spec.subset is None:
        found["index"] = index != np.arange(rows.start, rows.stop)
        index, unread = np.arange(rows.start, rows.stop), np.zeros(len(rows), bool)
    # Nothing follows from an index that is lost.
    known = ~(unread | (found["index"] & (spec.subset is not None)))
    labels, classes = values["label"], spec.samples.num_classes
    found["label"] = (labels < 0) | (labels >= classes) if classes else labels != -1
    if spec.noise_seed is None or not (classes or "noise" in values):
        return found
    noise, expected = spec.draw(np.where(known, index, 0))
    found["label"] |= (labels != expected) & known
    if "noise" in values:
        found["noise"] = (values["noise"] != noise).reshape(len(rows), -1).any(axis=1) & known
    return found


def copy_whole(source: PairStore, target: PairStore, shard: int) -> None:
    """Take over a shard that has the same rows in both stores, after it was checked.

    Raises:
        DataError: it is damaged, or cannot be written.
        KDMError: another process writes it.
    """
    if any(lost.any() for lost in check_shard(source, shard).lost.values()):
        rows = source.spec.shard_range(shard)
        raise DataError(f"{source.location}: pairs {rows.start} to {rows.stop} are damaged: "
                        "verify the store to know which, and repair it")
    target.copy_shard(source, shard)


def disordered(
    spec: StoreSpec, index: NDArray[np.int64], known: NDArray[np.bool_]
) -> list[int]:
    """Shards of a subset whose indices do not ascend; which of two neighbours is the wrong one
    cannot be told."""
    if spec.subset is None:
        return []
    rows = np.flatnonzero(known)
    ends = np.cumsum([len(spec.split_range(split)) for split in SPLITS])
    splits = np.searchsorted(ends, rows, side="right")
    wrong = (np.diff(index[rows]) <= 0) & (np.diff(splits) == 0)
    pairs = np.concatenate([rows[:-1][wrong], rows[1:][wrong]])
    return [int(shard) for shard in np.unique(pairs // spec.shard)]


def find_exchanged(
    store: PairStore, teacher: Teacher, device: torch.device,
    on_pairs: Callable[[int], None] = lambda pairs: None,
) -> dict[str, list[int]]:
    """By array, shards whose samples or states are not those of their noise.

    The first and the last intact pair of each shard are sampled again. Rounding depends on the
    device and the batch, so they count as the same up to a quarter of a standard deviation.

    Args:
        teacher: the store's, on `device`.

    Raises:
        MismatchError: the store has no seed.
        DataError: it cannot be read (permissions, network).
    """
    spec = store.spec.model_copy(update={"compute_batch": 1})
    found: dict[str, list[int]] = {}
    for shard in range(spec.num_shards):
        checked = check_shard(store, shard)
        for name in (name for name in SOLVED if name in checked.values):
            intact = np.flatnonzero(~(checked.lost[name] | checked.lost["index"]))
            if len(intact) and not any(
                    is_same(spec, teacher, checked, name, row, device) for row in intact[[0, -1]]):
                found.setdefault(name, []).append(shard)
        on_pairs(len(spec.shard_range(shard)))
    return found


def is_same(
    spec: StoreSpec, teacher: Teacher, checked: CheckedShard, name: str, row: int,
    device: torch.device,
) -> bool:
    """Whether a sample, or its states, are what the teacher makes of the pair's noise."""
    made, _ = sample_batch(spec, teacher, int(checked.values["index"][row]), device)
    difference = as_float(getattr(made, name)[0]) - as_float(checked.values[name][row])
    # States are stored with a deviation of one.
    deviation = spec.samples.sigma_data if name == "sample" else 1.0
    return bool(difference.square().mean().sqrt() < TOLERANCE * deviation)


def as_ranges(places: Iterable[int]) -> list[range]:
    """Ascending numbers as ranges."""
    found: list[range] = []
    for place in places:
        if found and found[-1].stop == place:
            found[-1] = range(found[-1].start, place + 1)
        else:
            found.append(range(place, place + 1))
    return found
