"""What the pairs of a store are: all that decides their values, kept in the store's attributes."""

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from kdm_core.config import Config
from kdm_core.errors import KDMError, MismatchError
from kdm_core.noise import draw
from kdm_core.samples import SampleSpec, Source
from kdm_core.serialization import fingerprint
from kdm_core.solvers import SolverConfig
from kdm_core.solvers.guidance import GuidanceConfig
from kdm_core.values import SampleDtype

SchemaVersion = Literal[1, 2]
SCHEMA_VERSION: SchemaVersion = 2
"""The latest. Stores are written in the earliest that holds them: 2 has latents, or float16."""
MAKER = 1
"""Version of the code that makes samples of noise: solvers, teachers, networks, precision.

Pairs of another version are other pairs. Raise it when the same specification gives other numbers,
which `tests/test_golden.py` notices; whatever else is edited, stored pairs stay what they are.
"""
Split = Literal["test", "validation", "train"]
# In the order of their pairs: a store grows at its end.
SPLITS: tuple[Split, ...] = ("test", "validation", "train")


# Classes that a message names.
NAMED = 10


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


class Subset(Config):
    """Where the pairs of a store were taken from, if it is a part of another one.

    Its array `index` has the pairs' indices in that store.

    Attributes:
        pairs: fingerprint of the store that they were taken from.
        rule: what was asked for, in words.
    """

    pairs: str
    rule: str


class StoreSpec(Config):
    """Everything that decides what the pairs of a store are.

    Attributes:
        samples: what one sample is; `samples.label_names` names the labels.
        teacher: fingerprint of the teacher's weights and configuration; None if it is unknown.
        noise_seed: pair i has the noise and label of `kdm_core.noise.draw(noise_seed, [i], …)`;
            None if the noise was drawn by others.
        label_weights: whole numbers, one a class, in whose proportion labels are drawn; None draws
            them uniformly.
        noise: whether it lies in the store, or is drawn again when it is read.
        noise_check: of drawn noise, `kdm_core.noise.check_value`: another program draws the same.
        noise_scale: standard deviation of the state the teacher's solver starts from; the stored
            noise has 1.
        solver, times: how the teacher was solved, and between which times; None and empty if that
            is unknown.
        nfe: runs of a network a pair; None where they vary (adaptive solvers) or are unknown.
        guidance, guide: how the teacher was guided, and the fingerprint of the weaker teacher if
            that is another one.
        compute_batch: pairs that go through the teacher together; cuts the index range from 0.
        precision: of the teacher's matrix products.
        splits: number of pairs of each split, which follow each other in the order of `SPLITS`.
        chunk, shard: pairs a compressed chunk and a file.
        states: what is kept of the way from noise to sample, noisiest first.
        imported: what the pairs were read from, if this project did not sample them.
        subset: what they were selected from, if they are not pairs 0, 1, 2, ….
        maker: the version of the code that made them, as `MAKER`.
    """

    schema_version: SchemaVersion = 1
    samples: SampleSpec
    teacher: str | None
    noise_seed: int | None = Field(ge=0)
    label_weights: list[Annotated[int, Field(ge=0, lt=2**31)]] | None = None
    noise: Literal["stored", "seeded"] = "stored"
    noise_check: str | None = None
    noise_dtype: Literal["float16", "float32"]
    noise_scale: float
    sample_dtype: SampleDtype
    solver: SolverConfig | None
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
    imported: str | None = None
    subset: Subset | None = None
    maker: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> "StoreSpec":
        if self.shard % self.chunk:
            raise ValueError(f"shard: {self.shard} is no multiple of chunk: {self.chunk}")
        if self.noise == "seeded" and (self.noise_seed is None or self.noise_check is None):
            raise ValueError("noise: seeded noise needs noise_seed and noise_check")
        if self.schema_version < schema_for(self.samples, self.sample_dtype):
            raise ValueError(f"schema_version: {self.schema_version} has neither latents nor "
                             "samples in float16")
        weights = self.label_weights
        if weights is not None and (len(weights) != self.samples.num_classes or not any(weights)):
            raise ValueError(f"label_weights: {len(weights)} numbers, not all of them 0, are for "
                             f"as many classes, and there are {self.samples.num_classes}")
        return self

    @property
    def count(self) -> int:
        return sum(self.splits.values())

    @property
    def num_shards(self) -> int:
        return -(-self.count // self.shard)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.describe())

    @property
    def stream(self) -> str:
        """The same for stores in which equal indices are equal pairs, however many they hold."""
        return fingerprint({key: value for key, value in self.describe().items()
                            if key != "splits"})

    def with_labels(self, weights: list[int] | None) -> "StoreSpec":
        """The same pairs but for the law by which their labels are drawn."""
        return self.model_copy(update={"label_weights": weights})

    def draw(
        self, indices: NDArray[np.int64]
    ) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
        """Noise (n, *shape) and labels (n,) of the pairs `indices` (n,), as the seed gives them.

        Raises:
            MismatchError: there is no seed.
        """
        if self.noise_seed is None:
            raise MismatchError("these pairs were imported: their noise and labels were drawn by "
                                "others, there is no seed")
        return draw(self.noise_seed, indices, self.samples.sample_shape, self.noise_dtype,
                    self.samples.num_classes, self.label_weights)

    @property
    def source(self) -> Source:
        """What a student of these pairs is looked at beside: the teacher, if it is known."""
        return "pairs" if self.teacher is None else "teacher"

    @property
    def known_solver(self) -> SolverConfig:
        """How the teacher was solved.

        Raises:
            MismatchError: the pairs were made by others, who did not say.
        """
        if self.solver is None:
            raise MismatchError("these pairs were imported without saying how their teacher was "
                                "solved; import them again, and say it")
        return self.solver

    def describe(self) -> dict[str, Any]:
        """The specification as JSON has it."""
        values = self.model_dump()
        # Stores made before these fields existed keep their fingerprint.
        return {key: value for key, value in values.items()
                if key not in LATER or value != StoreSpec.model_fields[key].default}

    def split_range(self, split: Split) -> range:
        """The rows of a split."""
        start = sum(self.splits.get(name, 0) for name in SPLITS[: SPLITS.index(split)])
        return range(start, start + self.splits.get(split, 0))

    def shard_range(self, shard: int) -> range:
        """The rows in one shard."""
        return range(shard * self.shard, min((shard + 1) * self.shard, self.count))


def law_in_words(spec: StoreSpec) -> str:
    """How the labels of a seed are drawn: "uniformly", or "zero 94.0%, one 6.0%"."""
    if spec.label_weights is None:
        return "uniformly"
    shares = [f"{name} {weight / sum(spec.label_weights):.1%}" for name, weight in
              zip(spec.samples.label_names, spec.label_weights, strict=True)]
    rest = len(shares) - NAMED
    return ", ".join(shares[:NAMED]) + (f", and {rest} more" if rest > 0 else "")


# Fields that some stores lack since they are older.
LATER = {"noise", "noise_check", "states", "imported", "subset", "label_weights", "maker"}


def schema_for(samples: SampleSpec, dtype: SampleDtype) -> SchemaVersion:
    """The version of a store of such samples, the earliest that has all that is used."""
    return 2 if samples.kind == "latent" or dtype == "float16" else 1


def require_dtype(samples: SampleSpec, dtype: SampleDtype) -> None:
    """Make sure that samples can be kept in a type without harm.

    Raises:
        KDMError: only images are 256 levels, and only latents are kept in half precision, of which
            images need no more than eight bits and points of a plane more.
    """
    fitting = {"image": ("uint8", "float32"), "latent": ("float16", "float32"),
               "points": ("float32",)}[samples.kind]
    if dtype not in fitting:
        raise KDMError(f"{dtype} does not suit {samples.name}; use {' or '.join(fitting)}",
                       field="sample_dtype")
