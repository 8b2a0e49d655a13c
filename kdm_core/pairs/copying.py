"""Copies of whole stores, from and to wherever stores lie."""

import os
from collections.abc import Callable
from pathlib import Path

from zarr.core.sync import sync

from kdm_core.errors import DataError
from kdm_core.pairs.claims import claim
from kdm_core.pairs.integrity.shards import decode, fetch
from kdm_core.pairs.location import failures, local_path
from kdm_core.pairs.store import PairStore


def copy_store(
    source: PairStore,
    target: Path | str,
    link: bool = False,
    on_pairs: Callable[[int], None] = lambda pairs: None,
    on_start: Callable[[int], None] = lambda pairs: None,
) -> PairStore:
    """Copy a store, its mask included; goes on where an earlier copy was cut off.

    Every shard is read, so that damage is found and not copied.

    Args:
        source: a complete store.
        target: a folder or URL, with nothing there or an unfinished copy of the same store.
        link: make hard links in place of copies, if both are folders of one disk.
        on_pairs: is told the pairs of each shard that has been copied.
        on_start: is told once how many an earlier copy has left.

    Raises:
        DataError: the source is damaged or not complete, the target cannot be written, or is
            something else.
        MismatchError: the target holds other pairs.
    """
    copy = open_copy(source, target)
    missing = copy.missing_shards()
    take_over = link_shard if link and may_link(source, copy) else copy_shard
    on_start(source.spec.count - sum(len(source.spec.shard_range(shard)) for shard in missing))
    for shard in missing:
        take_over(source, copy, shard)
        on_pairs(len(source.spec.shard_range(shard)))
    if source.mask is not None and copy.mask is None:
        with failures(target):
            source.mask.write(copy.group)
    return PairStore.open(target)


def open_copy(source: PairStore, target: Path | str) -> PairStore:
    """The unfinished copy that is there, or an empty store."""
    try:
        copy = PairStore.open(target, writable=True)
    except DataError:
        # Whatever else is there is not overwritten.
        return PairStore.create(target, source.spec, source.provenance)
    copy.require(source.spec)
    copy.remove_leftovers()
    return copy


def copy_shard(source: PairStore, copy: PairStore, shard: int) -> None:
    """Fetch a shard once, check it, and only then write it."""
    contents = {name: fetch(source, name, shard) for name in source.arrays}
    rows = source.spec.shard_range(shard)
    for name, content in contents.items():
        found = decode(source, name, shard, content)
        if not found.intact.all() or (
                name == "index" and not source.are_indices(rows, found.values)):
            raise DataError(f"{source.location}: pairs {rows.start} to {rows.stop} are damaged "
                            f"({name}); repair that store, which samples them again")
    with (claim(copy.location, shard),
          failures(f"cannot write shard {shard} of {copy.location}")):
        for name, content in contents.items():  # `index` comes last
            if content is not None:
                sync(copy.shard_file(name, shard).set(content))


def link_shard(source: PairStore, copy: PairStore, shard: int) -> None:
    """Check a shard, and then link it."""
    source.read(source.spec.shard_range(shard))
    copy.link_shard(source, shard)


def may_link(source: PairStore, copy: PairStore) -> bool:
    """Whether files of one store can be links to those of another one."""
    old, new = local_path(source.location), local_path(copy.location)
    if old is None or new is None:
        return False
    probe = new / ".link"
    try:
        os.link(old / "zarr.json", probe)
    except OSError:  # other disks, file systems without links, files of other users
        return False
    probe.unlink()
    return True
