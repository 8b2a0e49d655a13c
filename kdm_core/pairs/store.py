"""The pair store: one Zarr v3 group of noise–sample pairs that says what it is.

Arrays, all with the pair's index as their first axis, cut into the same shards:

    noise   (n, *shape) float16 or float32   unit-variance noise, what a student is given
    sample  (n, *shape) uint8 or float32     what the teacher made of it
    label   (n,) int64                       class, -1 in an unlabelled store
    index   (n,) int64                       the pair's index, -1 where nothing is written yet

and in a store with intermediate states of the teacher's ODE, noisiest first:

    trajectory  (n, k, *shape) float16       each state divided by its standard deviation
    times       (k,) float64                 the teacher's times of these states

A shard is the unit of writing. `index` is written last, so that a shard counts as complete when
its indices stand there; a kill at any instant costs at most the shard under way.
"""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.sync import sync

from kdm_core.config import Config
from kdm_core.errors import DataError, MismatchError
from kdm_core.samples import SampleSpec
from kdm_core.serialization import fingerprint
from kdm_core.solvers import SolverConfig
from kdm_core.solvers.guidance import GuidanceConfig

SCHEMA_VERSION = 1
ATTRIBUTE = "kdm_pairs"
Split = Literal["test", "validation", "train"]


class Block(NamedTuple):
    """Consecutive pairs: noise, sample, label, index and perhaps trajectory, each (n, …)."""

    noise: NDArray[Any]
    sample: NDArray[Any]
    label: NDArray[np.int64]
    index: NDArray[np.int64]  # type: ignore[assignment]  # tuples have a method of that name
    trajectory: NDArray[np.float16] | None = None


class KeptState(Config):
    """A state of the teacher's ODE, between noise and sample, that is kept of each pair.

    Attributes:
        place: where its time stands in the store's `times`.
        position: u = (2/π) atan(sigma / (alpha sigma_data)) in (0, 1), from samples (0) to noise
            (1). This is the share of a quarter turn in x_t ∝ cos(πu/2) x₀/sigma_data +
            sin(πu/2) ε, the time of TrigFlow (Lu & Song 2024, arXiv:2410.11081): a function of
            the noise level alone, whatever the grid and the teacher's own time are.
        scale: standard deviation √(alpha² sigma_data² + sigma²) of such states; kept ones are
            divided by it, which float16 holds well and a network sees as it sees the noise.
    """

    place: int = Field(ge=1)
    position: float = Field(gt=0, lt=1)
    scale: float = Field(gt=0)


class StoreSpec(Config):
    """Everything that decides what the pairs of a store are, kept in its attributes.

    Attributes:
        samples: what one sample is; `samples.label_names` names the labels.
        teacher: fingerprint of the teacher's weights and configuration.
        noise_seed: pair i has the noise and label of `kdm_core.noise.draw(noise_seed, [i], …)`.
        noise_scale: standard deviation of the state the teacher's solver starts from; the stored
            noise has 1.
        solver, times: how the teacher was solved, and between which times.
        nfe: runs of a network a pair; None for an adaptive solver, where they vary.
        guidance, guide: how the teacher was guided, and the fingerprint of the weaker teacher if
            that is another one.
        compute_batch: pairs that go through the teacher together; cuts the index range from 0.
        precision: of the teacher's matrix products.
        splits: number of pairs of each split, which follow each other in this order; the test and
            validation pairs come first, so that a store can grow at its end.
        chunk, shard: pairs a compressed chunk and a file.
        states: what is kept of the way from noise to sample, noisiest first.
    """

    schema_version: Literal[1] = 1
    samples: SampleSpec
    teacher: str
    noise_seed: int = Field(ge=0)
    noise_dtype: Literal["float16", "float32"]
    noise_scale: float
    sample_dtype: Literal["uint8", "float32"]
    solver: SolverConfig
    times: list[float]
    nfe: int | None
    guidance: GuidanceConfig | None = None
    guide: str | None = None
    compute_batch: int = Field(ge=1)
    precision: Literal["fp32", "bf16"]
    splits: dict[Split, int]
    chunk: int = Field(ge=1)
    shard: int = Field(ge=1)
    states: list[KeptState] = []

    @property
    def count(self) -> int:
        return sum(self.splits.values())

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.describe())

    def describe(self) -> dict[str, Any]:
        """The specification as JSON has it."""
        # Stores without states were made before there were any, and keep their fingerprint.
        return self.model_dump(exclude=None if self.states else {"states"})

    def split_range(self, split: Split) -> range:
        """The indices of a split."""
        start = 0
        for name in ("test", "validation", "train"):
            if name == split:
                return range(start, start + self.splits.get(name, 0))
            start += self.splits.get(name, 0)
        raise KeyError(split)

    def shard_range(self, shard: int) -> range:
        """The indices in one shard."""
        return range(shard * self.shard, min((shard + 1) * self.shard, self.count))


class PairStore:
    """A pair store on disk. Make one with `create`, open one with `open`."""

    def __init__(self, path: Path, group: zarr.Group, spec: StoreSpec) -> None:
        self.path = path
        self.spec = spec
        names = ["noise", "sample", *(["trajectory"] if spec.states else []), "label", "index"]
        self._arrays: dict[str, Any] = {name: group[name] for name in names}

    @classmethod
    def create(cls, path: Path, spec: StoreSpec, provenance: dict[str, Any]) -> "PairStore":
        """Make an empty store.

        Args:
            path: a folder that does not exist yet.
            spec: what the store will hold.
            provenance: what else is worth keeping (versions, device); not part of its identity.
        """
        if path.exists():
            raise DataError(f"{path} exists already: move it away or open it")
        shape = spec.samples.sample_shape
        # The group appears under its name only when all its arrays are there.
        temporary = path.with_name(f".{path.name}.creating")
        shutil.rmtree(temporary, ignore_errors=True)
        group = zarr.create_group(temporary, attributes={ATTRIBUTE: {
            "spec": spec.describe(), "fingerprint": spec.fingerprint, "provenance": provenance}})
        layout: dict[str, tuple[tuple[int, ...], str, int]] = {
            "noise": (shape, spec.noise_dtype, 0),
            "sample": (shape, spec.sample_dtype, 0),
            "label": ((), "int64", -1),
            "index": ((), "int64", -1),
        }
        if spec.states:
            layout["trajectory"] = ((len(spec.states), *shape), "float16", 0)
            times = [spec.times[state.place] for state in spec.states]
            group.create_array("times", data=np.array(times), compressors=[Crc32cCodec()])
        for name, (inner, dtype, fill) in layout.items():
            # Noise does not compress. Every chunk carries a checksum.
            noisy = name in ("noise", "trajectory")
            codecs = [Crc32cCodec()] if noisy else [ZstdCodec(level=3), Crc32cCodec()]
            group.create_array(name, shape=(spec.count, *inner), dtype=dtype, fill_value=fill,
                               chunks=(spec.chunk, *inner), shards=(spec.shard, *inner),
                               compressors=codecs)
        temporary.rename(path)
        return cls.open(path, writable=True)

    @classmethod
    def open(cls, path: Path, writable: bool = False) -> "PairStore":
        """Open a store, for reading unless `writable`.

        Raises:
            DataError: there is none, or it is not a pair store.
            MismatchError: it was made by a later version.
        """
        try:
            group = zarr.open_group(path, mode="r+" if writable else "r")
            attributes: Any = group.attrs[ATTRIBUTE]
            spec, mark = attributes["spec"], attributes["fingerprint"]
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise DataError(f"{path} is no pair store ({type(error).__name__}: {error}): "
                            "run the stage that makes it") from error
        version = spec.get("schema_version")
        if version != SCHEMA_VERSION:
            raise MismatchError(f"{path} has schema version {version}, this is a program for "
                                f"version {SCHEMA_VERSION}: use the version that made it")
        try:
            parsed = StoreSpec.model_validate(spec)
            # Of what stands there: an older store lacks fields that were added since.
            if fingerprint(spec) != mark:
                raise MismatchError(f"{path}: its attributes were altered, the fingerprint does "
                                    "not fit: sample it again")
            return cls(path, group, parsed)
        except (ValidationError, KeyError) as error:
            raise DataError(f"{path} is damaged: {error}") from error

    def require(self, spec: StoreSpec) -> None:
        """Make sure that this store is the one that `spec` describes.

        Raises:
            MismatchError: it is not; the message names the fields that differ.
        """
        own, other = self.spec.model_dump(), spec.model_dump()
        differences = [f"{key} (here {own[key]}, wanted {other[key]})"
                       for key in own if own[key] != other[key]]
        if differences:
            raise MismatchError(f"{self.path} holds other pairs: {'; '.join(differences)}")

    @property
    def num_shards(self) -> int:
        return -(-self.spec.count // self.spec.shard)

    def is_complete(self, shard: int) -> bool:
        """Whether all pairs of a shard are there."""
        rows = self.spec.shard_range(shard)
        try:
            written = self._arrays["index"][rows.start : rows.stop]
        except (ValueError, OSError):  # truncated or damaged: to be written again
            return False
        return bool((written == np.arange(rows.start, rows.stop)).all())

    def missing_shards(self) -> list[int]:
        """The shards that are not complete."""
        return [shard for shard in range(self.num_shards) if not self.is_complete(shard)]

    def write_shard(self, shard: int, block: Block) -> None:
        """Write all pairs of one shard. Writing the same pairs again changes nothing.

        Raises:
            DataError: the disk is full or may not be written.
        """
        rows = self.spec.shard_range(shard)
        try:
            self.discard_shard(shard)
            for name, array in self._arrays.items():
                array[rows.start : rows.stop] = getattr(block, name)
        except OSError as error:
            raise DataError(f"cannot write shard {shard} of {self.path}: {error.strerror}; free "
                            "some space or check the permissions, then run again: complete "
                            "shards are kept") from error

    def discard_shard(self, shard: int) -> None:
        """Remove what there is of a shard: Zarr would read a damaged one before it writes."""
        for array in reversed(self._arrays.values()):
            key = array.metadata.encode_chunk_key((shard, *[0] * (array.ndim - 1)))
            sync((array.store_path / key).delete())

    def remove_leftovers(self) -> None:
        """Remove the unfinished files of a killed writer, which are not part of the store."""
        for leftover in self.path.rglob("*.partial"):
            leftover.unlink()

    def read(self, rows: range, states: bool = True) -> Block:
        """Consecutive pairs, as stored; without the trajectory if no `states` are asked for.

        Raises:
            DataError: a pair is missing, or a chunk's checksum does not fit.
        """
        try:
            block = Block(**{name: array[rows.start : rows.stop]
                             for name, array in self._arrays.items()
                             if states or name != "trajectory"})
        except (ValueError, OSError) as error:
            raise DataError(f"{self.path}: pairs {rows.start} to {rows.stop} are damaged "
                            f"({error}): sample them again") from error
        if not (block.index == np.arange(rows.start, rows.stop)).all():
            raise DataError(f"{self.path}: pairs {rows.start} to {rows.stop} are not complete: "
                            "run the stage that samples them to its end")
        return block

    def shards(self) -> Iterator[Block]:
        """All pairs, shard by shard, in order."""
        for shard in range(self.num_shards):
            yield self.read(self.spec.shard_range(shard))

    def content_hash(self) -> str:
        """SHA-256 over the specification and all values: equal for equal stores."""
        digest = hashlib.sha256(self.spec.fingerprint.encode())
        for block in self.shards():
            for values in block:
                if values is not None:
                    digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()
