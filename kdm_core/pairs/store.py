"""The pair store: one Zarr v3 group of noise–sample pairs that says what it is.

Arrays, all with one entry a pair as their first axis, cut into the same shards:

    noise   (n, *shape) float16 or float32   unit-variance noise, what a student is given
    sample  (n, *shape) uint8, float16 or float32   what the teacher made of it: images, latents,
                                             points
    label   (n,) int64                       class, -1 in an unlabelled store
    index   (n,) int64                       the pair's index, -1 where nothing is written yet

In a store with intermediate states of the teacher's ODE, noisiest first:

    trajectory  (n, k, *shape) float16       each state divided by its standard deviation
    times       (k,) float64                 the teacher's times of these states

A store of seeded noise has no `noise`: it is drawn again from the seed and the index. A store that
was filtered may have a mask (`kdm_core.pairs.keep`).

A shard is the unit of writing. `index` is written last, so that a shard counts as complete when
its indices stand there; a kill at any instant costs at most the shards under way.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import ValidationError
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from kdm_core.errors import DataError, MismatchError
from kdm_core.noise import check_value, draw
from kdm_core.pairs.claims import claim, creating, sweep, try_claim
from kdm_core.pairs.keep import KeepMask
from kdm_core.pairs.location import failures, local_path, open_group, put_group
from kdm_core.pairs.reference import Reference, find_reference
from kdm_core.pairs.spec import SCHEMA_VERSION, SchemaVersion, Split, StoreSpec
from kdm_core.serialization import fingerprint

ATTRIBUTE = "kdm_pairs"
WRITERS = 2  # threads; of the arrays two are large


class Block(NamedTuple):
    """Consecutive pairs: noise, sample, label, index and perhaps trajectory, each (n, …)."""

    noise: NDArray[Any]
    sample: NDArray[Any]
    label: NDArray[np.int64]
    index: NDArray[np.int64]  # type: ignore[assignment]  # tuples have a method of that name
    trajectory: NDArray[np.float16] | None = None


class PairStore:
    """A pair store. Make one with `create`, open one with `open`.

    Attributes:
        location: a folder, or a URL.
        spec: what its pairs are.
        provenance: what else is known of their making (versions, device, threads).
        mask: which pairs students read; None for all.
        expected_content: the content hash that a reference to the store gives; None without one.
    """

    expected_content: str | None = None

    def __init__(
        self, location: Path | str, group: zarr.Group, spec: StoreSpec, provenance: dict[str, Any]
    ) -> None:
        self.location, self.group = location, group
        self.spec, self.provenance = spec, provenance
        self.arrays: dict[str, Any] = {name: open_array(group, name) for name in array_layout(spec)}
        self.mask = KeepMask.find(group, location)

    @classmethod
    def create(
        cls, location: Path | str, spec: StoreSpec, provenance: dict[str, Any]
    ) -> "PairStore":
        """Make an empty store.

        Args:
            location: a folder that does not exist yet, or a URL under which there is nothing.
            spec: what the store will hold.
            provenance: what else is worth keeping (versions, device); not part of its identity.

        Raises:
            DataError: something is there already, or it cannot be written.
        """
        path = local_path(location)
        with failures(location):
            if path is None:
                documents: dict[str, Buffer] = {}
                fill_group(zarr.create_group(MemoryStore(documents)), spec, provenance)
                put_group(str(location), documents)
                return cls.open(location, writable=True)
            with creating(path):
                if path.exists():
                    raise DataError(f"{path} exists already: move it away or open it")
                # The group appears under its name only when all its arrays are there.
                temporary = path.with_name(f".{path.name}.creating")
                shutil.rmtree(temporary, ignore_errors=True)
                fill_group(zarr.create_group(temporary), spec, provenance)
                temporary.rename(path)
            return cls.open(path, writable=True)

    @classmethod
    def open(cls, location: Path | str, writable: bool = False) -> "PairStore":
        """Open a store, for reading unless `writable`; by a reference, the store that it names.

        Raises:
            DataError: there is none, or it is not a pair store; or what a reference names is to be
                written, is gone, or cannot be reached.
            MismatchError: it was made by a later version, altered, or is not the one that a
                reference names.
        """
        reference = find_reference(location)
        if reference is not None:
            return cls.open_referred(location, reference, writable)
        return cls.open_here(location, writable)

    @classmethod
    def open_referred(
        cls, location: Path | str, reference: Reference, writable: bool
    ) -> "PairStore":
        """Open the store that a reference at `location` names; errors are those of `open`."""
        target = reference.target(location)
        if writable:
            raise DataError(f"{location} only says where the pairs lie: {target}; name that to "
                            "change them")
        try:
            store = cls.open_here(target)
        except DataError as error:
            raise DataError(f"{location} names pairs that cannot be read: {error}. If they are "
                            "gone for good, force whatever samples them to run again"
                            ) from error
        if store.spec.fingerprint != reference.fingerprint:
            raise MismatchError(f"{location} names the pairs {reference.fingerprint[:12]}, and "
                                f"{target} holds {store.spec.fingerprint[:12]}: bring those back, "
                                "or force whatever samples them to run again")
        store.expected_content = reference.content
        return store

    @classmethod
    def open_here(cls, location: Path | str, writable: bool = False) -> "PairStore":
        """Open the store that lies at a location itself; errors are those of `open`."""
        group = open_group(location, "r+" if writable else "r")
        try:
            attributes: Any = group.attrs[ATTRIBUTE]
            spec, mark = attributes["spec"], attributes["fingerprint"]
            version = spec.get("schema_version")
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{location} is no pair store: its Zarr group has no {ATTRIBUTE} "
                            "with a specification; pairs of others have to be imported") from error
        if version not in get_args(SchemaVersion):
            raise MismatchError(f"{location} has schema version {version}, this is a program for "
                                f"version {SCHEMA_VERSION}: use the version that made it")
        try:
            parsed = StoreSpec.model_validate(spec)
            # Of what stands there: an older store lacks fields that were added since.
            if fingerprint(spec) != mark:
                raise MismatchError(f"{location}: its attributes were altered, the fingerprint "
                                    "does not fit: sample it again")
            store = cls(location, group, parsed, dict(attributes.get("provenance") or {}))
        except (ValidationError, KeyError) as error:
            raise DataError(f"{location} is damaged: {error}") from error
        store.check_layout()
        return store

    def check_layout(self) -> None:
        """Make sure that the arrays are what the specification says.

        Raises:
            DataError: one has another shape or type.
            MismatchError: the noise would be drawn otherwise than when the store was made.
        """
        for name, (inner, dtype, _) in array_layout(self.spec).items():
            array, shape = self.arrays[name], (self.spec.count, *inner)
            if (array.shape != shape or array.dtype != dtype or array.shards is None
                    or array.shards[0] != self.spec.shard):
                raise DataError(f"{self.location}: its array {name} is not {dtype} of shape "
                                f"{shape} in shards of {self.spec.shard}, as its specification "
                                "says: it was altered; sample it again")
        spec = self.spec
        if spec.noise == "seeded":
            found = check_value(spec.noise_seed or 0, spec.samples.sample_shape, spec.noise_dtype)
            if found != spec.noise_check:
                raise MismatchError(f"{self.location}: numpy {np.__version__} draws other noise "
                                    "than the one that the store was made with "
                                    f"({self.provenance.get('numpy', 'unknown')}): use that one")

    def require(self, spec: StoreSpec) -> None:
        """Make sure that this store is the one that `spec` describes.

        Raises:
            MismatchError: it is not; the message names the fields that differ.
        """
        own, other = self.spec.model_dump(), spec.model_dump()
        differences = [f"{key} (here {own[key]}, wanted {other[key]})"
                       for key in own if own[key] != other[key]]
        if differences:
            raise MismatchError(f"{self.location} holds other pairs: {'; '.join(differences)}")

    def is_complete(self, shard: int) -> bool:
        """Whether all pairs of a shard are there."""
        rows = self.spec.shard_range(shard)
        try:
            written = self.arrays["index"][rows.start : rows.stop]
        except (ValueError, RuntimeError, OSError):  # damaged: to be written again
            return False
        return self.are_indices(rows, written)

    def are_indices(self, rows: range, written: NDArray[np.int64]) -> bool:
        """Whether the indices that stand at some rows say that all pairs are there."""
        if self.spec.subset is not None:
            return bool((written >= 0).all())
        return bool((written == np.arange(rows.start, rows.stop)).all())

    def missing_shards(self) -> list[int]:
        """The shards that are not complete."""
        return [shard for shard in range(self.spec.num_shards) if not self.is_complete(shard)]

    def write_shard(self, shard: int, block: Block, claimed: bool = False) -> None:
        """Write all pairs of one shard. Writing the same pairs again changes nothing.

        Args:
            claimed: whether the caller has the shard to itself (`kdm_core.pairs.claims`).

        Raises:
            DataError: the disk is full or may not be written, or there are values that are not
                finite.
            KDMError: another process writes the shard.
        """
        rows = self.spec.shard_range(shard)
        for name, array in self.arrays.items():
            values = getattr(block, name)
            if array.dtype.kind == "f" and not all_finite(values):
                raise DataError(f"{self.location}: the {name} of pairs {rows.start} to "
                                f"{rows.stop} has values that are not finite: nothing written")
        with (nullcontext() if claimed else claim(self.location, shard),
              failures(f"cannot write shard {shard} of {self.location}")):
            self.discard_shard(shard)

            def put(name: str) -> None:
                self.arrays[name][rows.start : rows.stop] = getattr(block, name)

            with ThreadPoolExecutor(WRITERS) as pool:
                list(pool.map(put, [name for name in self.arrays if name != "index"]))
            put("index")

    def discard_shard(self, shard: int) -> None:
        """Remove what there is of a shard: Zarr would read a damaged one before it writes."""
        for name in reversed(self.arrays):
            sync(self.shard_file(name, shard).delete())

    def copy_shard(self, source: "PairStore", shard: int) -> None:
        """Take over a shard, as it lies there, from a store of the same stream.

        The shard must have the same rows in both.

        Raises:
            DataError: it is not in the source, or cannot be written.
            KDMError: another process writes the shard.
        """
        with (claim(self.location, shard),
              failures(f"cannot write shard {shard} of {self.location}")):
            contents = {name: sync(source.shard_file(name, shard).get()) for name in self.arrays}
            for name, content in contents.items():
                # Older stores have no files of labels that are all -1.
                if content is None and (name != "label" or self.spec.samples.num_classes):
                    raise DataError(f"{source.location}: shard {shard} of {name} is missing; "
                                    "verify that store")
            self.discard_shard(shard)
            for name, content in contents.items():
                if content is not None:
                    sync(self.shard_file(name, shard).set(content))

    def link_shard(self, source: "PairStore", shard: int) -> None:
        """As `copy_shard`, with hard links on the same disk: the files take no more space.

        Raises:
            DataError: it is not in the source, or the disk has no links.
            KDMError: another process writes the shard.
        """
        with (claim(self.location, shard),
              failures(f"cannot link shard {shard} of {self.location}")):
            self.discard_shard(shard)
            for name in self.arrays:
                target = self.local_file(name, shard)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(source.local_file(name, shard), target)

    def shard_file(self, name: str, shard: int) -> Any:
        """Where a shard of an array lies, as Zarr's StorePath."""
        array = self.arrays[name]
        return array.store_path / array.metadata.encode_chunk_key(
            (shard, *[0] * (array.ndim - 1)))

    def local_file(self, name: str, shard: int) -> Path:
        """Where a shard of an array lies, in a store on a disk."""
        path = local_path(self.location)
        assert path is not None
        return path / str(self.shard_file(name, shard).path)

    def remove_leftovers(self) -> None:
        """Remove the unfinished files of killed writers, which are not part of the store."""
        path = local_path(self.location)
        if path is None:
            return
        for leftover in path.glob("*/c/**/*.partial"):
            shard = int(leftover.relative_to(path).parts[2].split(".")[0])
            with try_claim(self.location, shard) as ours:
                if ours:  # else a living writer is at it
                    leftover.unlink(missing_ok=True)
        sweep(path)

    def read(self, rows: range, states: bool = True) -> Block:
        """Consecutive pairs, as stored; without the trajectory if no `states` are asked for.

        Raises:
            DataError: a pair is missing or not in the store, or a chunk's checksum does not fit.
        """
        found = self.read_arrays(rows, [name for name in self.arrays
                                        if states or name != "trajectory"])
        if self.spec.noise == "seeded":
            found["noise"] = self.draw_noise(found["index"])
        return Block(**found)

    def read_arrays(self, rows: range, names: list[str]) -> dict[str, NDArray[Any]]:
        """Consecutive entries of some arrays, and always of `index`.

        Raises:
            DataError: as `read`.
        """
        if not 0 <= rows.start <= rows.stop <= self.spec.count or rows.step != 1:
            raise DataError(f"{self.location} has pairs 0 to {self.spec.count}, and not "
                            f"{rows.start} to {rows.stop}")
        before = self.stamps(rows)
        try:
            found = {name: self.arrays[name][rows.start : rows.stop]
                     for name in {**dict.fromkeys(names), "index": None}}
        except (ValueError, RuntimeError, OSError) as error:
            raise self.damaged(rows, str(error)) from error
        if not self.are_indices(rows, found["index"]):
            raise DataError(f"{self.location}: pairs {rows.start} to {rows.stop} are not complete: "
                            "sample them to the end")
        if not self.has_files(rows, found):
            raise self.damaged(rows, "a file is missing or empty")
        if self.stamps(rows) != before:
            raise DataError(f"{self.location}: pairs {rows.start} to {rows.stop} were written "
                            "again while they were read: read them again")
        return found

    def damaged(self, rows: range, why: str) -> DataError:
        """The error for pairs that were complete once."""
        return DataError(f"{self.location}: pairs {rows.start} to {rows.stop} are damaged ({why}): "
                         "repair the store, which samples them again")

    def stamps(self, rows: range) -> list[tuple[int, int]]:
        """What tells whether shards were written anew; nothing for stores behind URLs.

        A shard's `index` is removed first and written last.
        """
        if local_path(self.location) is None:
            return []
        shards = range(rows.start // self.spec.shard, -(-rows.stop // self.spec.shard))
        found = []
        for shard in shards:
            with suppress(FileNotFoundError):
                stat = self.local_file("index", shard).stat()
                found.append((stat.st_ino, stat.st_mtime_ns))
        return found

    def has_files(self, rows: range, found: dict[str, NDArray[Any]]) -> bool:
        """Whether no file is missing or empty, of which Zarr `found` fill values."""
        # Older stores have no files of labels that are all -1.
        needed = [name for name in found if name != "label" or self.spec.samples.num_classes]
        for shard in range(rows.start // self.spec.shard, -(-rows.stop // self.spec.shard)):
            first = max(shard * self.spec.shard - rows.start, 0)
            for name in needed:
                # A value of its own shows that the file is there, without asking for it.
                blank = (found[name][first : first + 1] == self.arrays[name].fill_value).all()
                if blank and not sync(self.shard_file(name, shard).get()):
                    return False
        return True

    def draw_noise(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """The noise (n, *shape) of the pairs `indices` (n,) of a seed."""
        spec = self.spec
        if spec.noise_seed is None:
            raise MismatchError(f"{self.location}: its noise was drawn by others, there is no seed")
        return draw(spec.noise_seed, indices, spec.samples.sample_shape, spec.noise_dtype)[0]

    def kept_rows(self, split: Split) -> NDArray[np.int64]:
        """The rows of a split that students read; test pairs, the yardstick, all."""
        rows = self.spec.split_range(split)
        every = np.arange(rows.start, rows.stop)
        if self.mask is None or split == "test":
            return every
        return every[self.mask.keep[rows.start : rows.stop]]

    def masked(self, mask: KeepMask) -> "PairStore":
        """This store, read through a mask that lies somewhere else.

        Raises:
            MismatchError: the mask is for other pairs.
        """
        if mask.pairs != self.spec.fingerprint or len(mask.reasons) != self.spec.count:
            raise MismatchError(f"the mask is for the pairs {mask.pairs[:12]}, and {self.location} "
                                f"holds {self.spec.fingerprint[:12]}: filter again")
        store = PairStore(self.location, self.group, self.spec, self.provenance)
        store.mask = mask
        return store

    def shards(self) -> Iterator[Block]:
        """All pairs, shard by shard, in order."""
        for shard in range(self.spec.num_shards):
            yield self.read(self.spec.shard_range(shard))

    def content_hash(self) -> str:
        """SHA-256 over the specification and all stored values: equal for equal stores."""
        digest = hashlib.sha256(self.spec.fingerprint.encode())
        names = [name for name in Block._fields if name in self.arrays]
        for shard in range(self.spec.num_shards):
            found = self.read_arrays(self.spec.shard_range(shard), names)
            for name in names:
                digest.update(np.ascontiguousarray(found[name]).data)
        return digest.hexdigest()


def all_finite(values: NDArray[Any]) -> bool:
    """As np.isfinite(values).all(), which takes seven times as long for float16."""
    if values.dtype == np.float16:
        return bool(((values.view(np.uint16) & 0x7FFF) < 0x7C00).all())
    return bool(np.isfinite(values).all())


def open_array(group: zarr.Group, name: str) -> Any:
    """An array of a group, that also writes chunks in which there are only zeros.

    Raises:
        KeyError: it has none of that name.
        DataError: its description is damaged.
    """
    try:
        array = group[name]
    # What Zarr raised for descriptions with a flipped bit.
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise DataError(f"{group.store_path}: {name}/zarr.json is damaged ({error}): copy it from "
                        "another copy of the store, or sample it again") from error
    if not isinstance(array, zarr.Array):
        raise KeyError(f"{name} is a group and no array")
    # Else a missing file would be no damage.
    return array.with_config({"write_empty_chunks": True})


def array_layout(spec: StoreSpec) -> dict[str, tuple[tuple[int, ...], str, int]]:
    """Shape of one entry, dtype and fill value of each array, in the order of writing."""
    shape = spec.samples.sample_shape
    layout: dict[str, tuple[tuple[int, ...], str, int]] = {}
    if spec.noise == "stored":
        layout["noise"] = (shape, spec.noise_dtype, 0)
    layout["sample"] = (shape, spec.sample_dtype, 0)
    if spec.states:
        layout["trajectory"] = ((len(spec.states), *shape), "float16", 0)
    return {**layout, "label": ((), "int64", -1), "index": ((), "int64", -1)}


def fill_group(group: zarr.Group, spec: StoreSpec, provenance: dict[str, Any]) -> None:
    """Give an empty group the arrays of a store, and then the attributes that make it one."""
    if spec.states:
        times = [spec.times[state.place] for state in spec.states]
        group.create_array("times", data=np.array(times), compressors=[Crc32cCodec()])
    for name, (inner, dtype, fill) in array_layout(spec).items():
        # Noise does not compress. Every chunk carries a checksum. Higher levels cost more time
        # than they save bytes (benchmarks/pair_writing.py).
        noisy = name in ("noise", "trajectory")
        codecs = [Crc32cCodec()] if noisy else [ZstdCodec(level=1), Crc32cCodec()]
        group.create_array(name, shape=(spec.count, *inner), dtype=dtype, fill_value=fill,
                           chunks=(spec.chunk, *inner), shards=(spec.shard, *inner),
                           compressors=codecs)
    group.update_attributes({ATTRIBUTE: {
        "spec": spec.describe(), "fingerprint": spec.fingerprint, "provenance": provenance}})
