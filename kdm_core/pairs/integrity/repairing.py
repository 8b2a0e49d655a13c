"""Making lost pairs again: from another copy, from the seed, and from the teacher."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdm_core.errors import DataError, MismatchError
from kdm_core.pairs.claims import claim
from kdm_core.pairs.integrity.shards import decode, fetch, replace
from kdm_core.pairs.integrity.verifying import SOLVED, Damage, Lost, check_shard
from kdm_core.pairs.sampling import sample_batch
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import PairStore
from kdm_core.teachers import load_sampled
from kdm_core.teachers.base import Teacher


def load_recorded(folder: Path, spec: StoreSpec, trust_code: bool = False) -> Teacher:
    """The teacher that a store was sampled from.

    Raises:
        MismatchError: the folder holds another one, or the store does not say which it was.
        DataError: the folder is missing or damaged.
    """
    if spec.teacher is None or spec.noise_seed is None:
        raise MismatchError(f"these pairs were not sampled here but imported from {spec.imported}: "
                            "import them again, or copy them from another copy")
    teacher, mark, guide = load_sampled(folder, spec.guidance, trust_code, done=True)
    if (mark, guide) != (spec.teacher, spec.guide):
        raise MismatchError(f"{folder} is not the teacher of these pairs: its fingerprint is "
                            f"{mark[:12]}{f' with guide {guide[:12]}' if guide else ''}, theirs "
                            f"{spec.teacher[:12]}{f' with {spec.guide[:12]}' if spec.guide else ''}"
                            "; name the folder of theirs", field="teacher")
    return teacher


def repair(
    store: PairStore,
    damage: Damage,
    device: torch.device,
    teacher: Teacher | None = None,
    other: PairStore | None = None,
    on_pairs: Callable[[int], None] = lambda pairs: None,
) -> None:
    """Make what was lost again, shard by shard; what is intact stays as it is.

    On the device and with the number of threads that the pairs were sampled with, they are the
    same bit for bit; otherwise the samples agree to rounding, and noise and labels are the same.

    Args:
        damage: what `kdm_core.pairs.integrity.verifying.verify` found.
        teacher: the store's, on `device`; not needed where no samples are lost.
        other: another copy of the store, or a longer one of the same stream; it is asked first.
        on_pairs: is told the pairs of each shard that was repaired.

    Raises:
        MismatchError: the other store holds other pairs.
        DataError: something is lost that nothing at hand can give back; shards before it are
            repaired.
        DivergedError: the teacher made values that are not finite.
        KDMError: another process writes a shard.
    """
    store.remove_leftovers()
    if other is not None:
        require_copy(store, other)
    for shard, lost in sorted(damage.shards.items()):
        repair_shard(store, shard, lost, device, teacher, other)
        on_pairs(len(store.spec.shard_range(shard)))


def require_copy(store: PairStore, other: PairStore) -> None:
    """Make sure that equal indices are equal pairs in two stores.

    Raises:
        MismatchError: they may be others.
    """
    one, two = store.spec, other.spec
    grown = one.subset is None and one.noise_seed is not None and one.stream == two.stream
    if one.fingerprint != two.fingerprint and not grown:
        raise MismatchError(f"{other.location} is no copy of {store.location}: it holds the pairs "
                            f"{two.fingerprint[:12]} and not {one.fingerprint[:12]}")


def repair_shard(
    store: PairStore, shard: int, lost: Lost, device: torch.device, teacher: Teacher | None,
    other: PairStore | None,
) -> None:
    """Make again what one shard has lost, and write the arrays that had lost something."""
    values = {name: decode(store, name, shard, fetch(store, name, shard)).values
              for name in store.arrays}
    left = {name: those.copy() for name, those in lost.items()}
    if other is not None and shard < other.spec.num_shards:
        copy_lost(values, left, other, shard)
    draw_lost(store, shard, values, left)
    solve_lost(store, shard, values, left, device, teacher)
    # In the order of writing: `index` last, which says that all is there.
    with claim(store.location, shard):
        for name in (name for name in store.arrays if name in lost):
            replace(store, name, shard, values[name])


def copy_lost(
    values: dict[str, NDArray[Any]], left: Lost, other: PairStore, shard: int
) -> None:
    """Take over what another copy of the shard has; `left` is what remains lost."""
    checked = check_shard(other, shard)
    for name, those in left.items():
        count = min(len(those), len(checked.lost[name]))
        found = those[:count] & ~checked.lost[name][:count]
        values[name][:count][found] = checked.values[name][:count][found]
        those[:count] &= ~found


def draw_lost(
    store: PairStore, shard: int, values: dict[str, NDArray[Any]], left: Lost
) -> None:
    """Make indices, noise and labels again, which follow from the place and the seed."""
    spec, rows = store.spec, store.spec.shard_range(shard)
    if "index" in left and spec.subset is None:
        values["index"] = np.arange(rows.start, rows.stop)
    elif "index" in left and left["index"].any():
        raise lost_for_good(store, shard, "index", left["index"],
                            "they say which pairs were selected, take the subset again")
    for name in (name for name in ("noise", "label") if name in left and left[name].any()):
        those = left[name]
        if spec.noise_seed is None:
            raise lost_for_good(store, shard, name, those,
                                f"they were imported from {spec.imported}, import them again")
        noise, labels = spec.draw(values["index"][those])
        values[name][those] = noise if name == "noise" else labels


def solve_lost(
    store: PairStore, shard: int, values: dict[str, NDArray[Any]], left: Lost,
    device: torch.device, teacher: Teacher | None,
) -> None:
    """Sample those compute batches again in which samples or states are lost."""
    index, size = values["index"], store.spec.compute_batch
    wanted = {name: left[name] for name in SOLVED if name in left and left[name].any()}
    if not wanted:
        return
    if teacher is None:
        name, those = next(iter(wanted.items()))
        raise lost_for_good(store, shard, name, those,
                            "only their teacher can make them again, name its folder")
    rows = np.any(list(wanted.values()), axis=0)
    for batch in np.unique(index[rows] // size):
        block, _ = sample_batch(store.spec, teacher, int(batch), device)
        for name, those in wanted.items():
            here = those & (index // size == batch)
            values[name][here] = getattr(block, name)[index[here] - batch * size]


def lost_for_good(
    store: PairStore, shard: int, name: str, those: NDArray[np.bool_], way_out: str
) -> DataError:
    """The error that says that nothing at hand gives back some rows of an array."""
    first = store.spec.shard_range(shard).start + int(np.flatnonzero(those)[0])
    return DataError(f"{store.location}: {name} of {int(those.sum())} pairs from {first} on is "
                     f"lost; {way_out}, or copy them from another copy")
