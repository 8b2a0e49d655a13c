"""Whether all of a store besides its pairs is as the specification says, and making it so."""

import asyncio
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.codec import BytesBytesCodec
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from kdm_core.pairs.keep import KEEP_ATTRIBUTE
from kdm_core.pairs.location import failures, local_path
from kdm_core.pairs.store import PairStore, fill_group

TIMES = "times"


def altered_metadata(store: PairStore) -> list[str]:
    """What differs from a store as it is made, one sentence each.

    Compared are all arrays' descriptions, in which compression alone may differ: it says itself
    how it is undone.
    """
    pristine = pristine_group(store)
    found = [f"the description of {name} was altered ({field})"
             for name in store.arrays
             for field in differences(store.arrays[name], pristine[name])]
    if TIMES in pristine and not same_times(store, pristine):
        found.append("times was altered")
    if store.mask is not None and (store.mask.pairs != store.spec.fingerprint
                                   or len(store.mask.reasons) != store.spec.count):
        found.append("the mask is of other pairs: filter again")
    return found


def differences(array: Any, pristine: Any) -> list[str]:
    """The fields in which the descriptions of two arrays differ."""
    own, other = description(array), description(pristine)
    return sorted(key for key in own | other if own.get(key) != other.get(key))


def description(array: Any) -> dict[str, Any]:
    """An array's metadata with those codecs alone that decide what the values are."""
    fields: dict[str, Any] = array.metadata.to_dict()
    # One codec, sharding, whose own codecs are those of the chunks.
    [sharding] = array.metadata.codecs
    *inner, checksum = sharding.codecs
    fields["codecs"] = [*(codec for codec in inner if not isinstance(codec, BytesBytesCodec)),
                        checksum, sharding.chunk_shape, sharding.index_codecs,
                        sharding.index_location]
    return fields


def same_times(store: PairStore, pristine: zarr.Group) -> bool:
    """Whether the times of the kept states are those of the specification."""
    try:
        found, expected = (read_array(group, TIMES) for group in (store.group, pristine))
        return np.array_equal(found, expected)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError):  # it cannot be read
        return False


def read_array(group: zarr.Group, name: str) -> NDArray[Any]:
    """All of an array."""
    array: Any = group[name]
    return np.asarray(array[:])


def restore_metadata(store: PairStore) -> PairStore:
    """Describe all arrays anew, as the specification says; what was read of them is read again.

    Raises:
        DataError: the store cannot be written.
    """
    pristine = pristine_group(store)
    names = [name for name in store.arrays if differences(store.arrays[name], pristine[name])]
    if TIMES in pristine and not same_times(store, pristine):
        names.append(TIMES)
    target = store.group.store_path
    with failures(store.location):
        for key in sync(keys(pristine)):
            if key.split("/")[0] in names:
                content: Any = sync((pristine.store_path / key).get())
                sync((target / key).set(content))
    return PairStore.open(store.location, writable=True)


def foreign_files(store: PairStore) -> list[str]:
    """Files among the store's that are not its own; none over http(s), which does not list them."""
    own = {"zarr.json", *sync(keys(pristine_group(store)))}
    own |= {store.shard_file(name, shard).path
            for name in store.arrays for shard in range(store.spec.num_shards)}
    masked = ("keep/", "reasons/") if KEEP_ATTRIBUTE in store.group.attrs else ()
    return sorted(key for key in list_files(store) or ()
                  if key not in own and not key.startswith(masked))


def list_files(store: PairStore) -> dict[str, int] | None:
    """The size of every file in the group, in bytes; None over http(s), which does not list them.

    Raises:
        DataError: they cannot be listed.
    """
    path = local_path(store.location)
    if path is None and str(store.location).startswith("http"):
        return None
    with failures(store.location):
        # Not by Zarr, which takes a relative folder's name out of all names it occurs in.
        if path is not None:
            return {file.relative_to(path).as_posix(): file.stat().st_size
                    for file in path.rglob("*") if file.is_file()}
        return sync(sizes(store.group))


def pristine_group(store: PairStore) -> zarr.Group:
    """A store of the same pairs, in memory, as it was before the first shard was written."""
    group = zarr.create_group(MemoryStore())
    fill_group(group, store.spec, {})
    return group


async def keys(group: zarr.Group) -> list[str]:
    """The names of all files in a group that is the root of its store."""
    return [key async for key in group.store.list_prefix("")]


async def sizes(group: zarr.Group) -> dict[str, int]:
    """The bytes of each of them."""
    names = await keys(group)
    return dict(zip(names, await asyncio.gather(*map(group.store.getsize, names)), strict=True))
