"""Joining stores that were sampled on several machines, each of them a part of the same pairs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdm_core.errors import MismatchError
from kdm_core.pairs.integrity.verifying import as_ranges, copy_whole
from kdm_core.pairs.opening import open_or_create
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import PairStore


def complete_shards(store: PairStore) -> list[int]:
    """The shards whose pairs are all there."""
    missing = set(store.missing_shards())
    return [shard for shard in range(store.spec.num_shards) if shard not in missing]


def merge(
    stores: list[PairStore], target: Path | str,
    on_pairs: Callable[[int], None] = lambda pairs: None,
) -> PairStore:
    """Write all complete shards of some stores into one; one that was interrupted goes on.

    Args:
        stores: of one specification; a shard is complete in at most one of them.
        target: a new store, or what an interrupted merge has left.
        on_pairs: is told the pairs of each shard.

    Returns:
        The store, which misses the shards that all stores miss.

    Raises:
        MismatchError: the stores hold other pairs, or the same ones twice.
        DataError: a shard is damaged, or the target cannot be written.
        KDMError: another process writes to the target.
    """
    first = stores[0]
    for store in stores[1:]:
        store.require(first.spec)
    owners = owners_of(stores)
    merged = open_or_create(target, first.spec, joined_provenance(stores))
    there = set(complete_shards(merged))
    for shard, owner in sorted(owners.items()):
        if shard not in there:
            copy_whole(owner, merged, shard)
        on_pairs(len(first.spec.shard_range(shard)))
    return merged


def owners_of(stores: list[PairStore]) -> dict[int, PairStore]:
    """The store that has each shard.

    Raises:
        MismatchError: two have the same.
    """
    owners: dict[int, PairStore] = {}
    for store in stores:
        complete = complete_shards(store)
        for other in stores:
            shared = [shard for shard in complete if owners.get(shard) is other]
            if shared:
                raise MismatchError(f"{other.location} and {store.location} overlap: both have the "
                                    f"pairs {in_words(store.spec, shared)}; leave out one")
        owners |= dict.fromkeys(complete, store)
    return owners


def in_words(spec: StoreSpec, shards: list[int]) -> str:
    """The rows of some shards as START:STOP, …."""
    return ", ".join(f"{spec.shard_range(found.start).start}:{spec.shard_range(found[-1]).stop}"
                     for found in as_ranges(sorted(shards)))


def joined_provenance(stores: list[PairStore]) -> dict[str, Any]:
    """What all stores agree on, and under `merged` what each says if they do not."""
    every = [store.provenance for store in stores]
    if all(provenance == every[0] for provenance in every):
        return every[0]
    common = {key: value for key, value in every[0].items()
              if all(key in other and other[key] == value for other in every)}
    return {**common, "merged": every}
