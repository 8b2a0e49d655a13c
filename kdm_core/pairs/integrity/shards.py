"""Files of shards, one by one: what can still be read of a damaged one, and how one is made."""

from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import Buffer
from zarr.core.sync import sync
from zarr.storage import MemoryStore, StorePath

from kdm_core.pairs.location import failures
from kdm_core.pairs.store import PairStore

# What the index of a shard has in place of a chunk that is not there: offset and size 2^64 - 1,
# https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/
ABSENT = np.uint64(2**64 - 1)


class ShardContent(NamedTuple):
    """What one file holds.

    Attributes:
        values: (rows, …), the fill value where a chunk is lost.
        intact: (rows,) bool, whether the entry was read and its checksum fits.
    """

    values: NDArray[Any]
    intact: NDArray[np.bool_]


def fetch(store: PairStore, name: str, shard: int) -> Buffer | None:
    """The bytes of a file; None if it is missing, or empty, which Zarr takes for the same.

    Raises:
        DataError: it cannot be read (permissions, network).
    """
    with failures(store.location):
        content: Buffer | None = sync(store.shard_file(name, shard).get())
    return content if content else None


def decode(store: PairStore, name: str, shard: int, content: Buffer | None) -> ShardContent:
    """The entries in the bytes of a file, chunk by chunk if not all are intact."""
    rows, array = store.spec.shard_range(shard), store.arrays[name]
    values = np.full((len(rows), *array.shape[1:]), array.fill_value, array.dtype)
    if content is None:
        # Older stores have no files of labels that are all -1.
        optional = name == "label" and not store.spec.samples.num_classes
        return ShardContent(values, np.full(len(rows), optional))
    twin, intact = in_memory(array), np.zeros(len(rows), bool)
    sync((twin.store_path / key_of(array, shard)).set(content))
    chunk = store.spec.chunk
    # All at once, which is faster, and only then piece by piece.
    for size in (len(rows), chunk):
        for start in range(0, len(rows), size):
            part = slice(start, min(start + size, len(rows)))
            try:
                values[part] = twin[rows.start + part.start : rows.start + part.stop]
                intact[part] = True
            # All that Zarr raised for bytes changed, cut out or put in, and files of other arrays.
            except (ValueError, RuntimeError):
                continue
        if intact.all():
            break
    if intact.any():
        intact &= np.repeat(listed(store, content, name), chunk)[: len(rows)]
    return ShardContent(values, intact)


def listed(store: PairStore, content: Buffer, name: str) -> NDArray[np.bool_]:
    """Which chunks (shard / chunk,) are in the index of a file, whose checksum fits.

    None of them is, if there are bytes in the file that belong to no chunk: no checksum sees them.
    """
    count = store.spec.shard // store.spec.chunk
    size = 16 * count + 4  # the last four bytes are the checksum
    entries = np.frombuffer(content.to_bytes()[-size:-4], "<u8").reshape(count, 2)
    present = entries[:, 0] != ABSENT
    if int(entries[present, 1].sum()) + size != len(content):
        return np.zeros(count, bool)
    if name == "label" and not store.spec.samples.num_classes:
        # Older stores leave out chunks of labels that are all -1.
        return np.ones(count, bool)
    return np.asarray(present)


def encode(store: PairStore, name: str, shard: int, values: NDArray[Any]) -> Buffer:
    """The bytes of the file that holds these entries (rows, …) of a shard."""
    rows, array = store.spec.shard_range(shard), store.arrays[name]
    twin = in_memory(array)
    twin[rows.start : rows.stop] = values
    content: Buffer = sync((twin.store_path / key_of(array, shard)).get())
    return content


def replace(store: PairStore, name: str, shard: int, values: NDArray[Any]) -> None:
    """Put a new file in a shard's place: the old one stays until the new one is complete.

    Raises:
        DataError: it cannot be written.
    """
    content = encode(store, name, shard, values)
    with failures(f"cannot write shard {shard} of {store.location}"):
        sync(store.shard_file(name, shard).set(content))


def in_memory(array: Any) -> Any:
    """An empty array that is encoded as another one is."""
    return zarr.Array(zarr.AsyncArray(array.metadata, StorePath(MemoryStore()),
                                      {"write_empty_chunks": True}))


def key_of(array: Any, shard: int) -> str:
    """The name of a shard's file in its array."""
    return str(array.metadata.encode_chunk_key((shard, *[0] * (array.ndim - 1))))
