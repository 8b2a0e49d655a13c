"""Filling a pair store from a teacher."""

import operator
from collections.abc import Callable, Iterator
from math import pi
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from kdm_core.compute import Precision, resolve_precision
from kdm_core.config import Config
from kdm_core.errors import DivergedError, KDMError, adapted
from kdm_core.noise import check_value
from kdm_core.pairs.claims import try_claim
from kdm_core.pairs.location import writable_location
from kdm_core.pairs.spec import (
    MAKER,
    KeptState,
    StoreSpec,
    require_dtype,
    schema_for,
)
from kdm_core.pairs.store import Block, PairStore
from kdm_core.solvers import AdaptiveSolver, Path, SolverConfig, solve
from kdm_core.solvers.grids import GridConfig
from kdm_core.solvers.guidance import GuidanceConfig
from kdm_core.teachers.base import Teacher
from kdm_core.values import SampleDtype, as_stored


class PairsConfig(Config):
    """How many pairs, how they are solved and how they are stored.

    Attributes:
        solver: the way from noise to sample, and its steps.
        guidance: of the teacher, while it makes the pairs; None for none.
        precision: of the teacher's matrix products; `auto` is bf16 where the hardware has it.
        noise_dtype, sample_dtype: as which values are stored. Noise is rounded before the teacher
            sees it; samples as `uint8` are cut to [-1, 1], as image files are, latents are kept
            as `float16`.
        train, validation, test: pairs of each split; the last two are never trained on.
        batch: pairs that go through the teacher together; the pairs' last bits depend on it.
        shard: pairs a file and a task, a multiple of `batch` and of `chunk`.
        chunk: pairs that are compressed together.
        noise: `seeded` stores none and draws it again whenever it is read.
        states: states between noise and sample that are kept of each pair, for trajectory
            supervision.
        labels: how the labels of pairs are drawn: by the frequencies of the `data`'s training
            split, or `uniform`. Unset: as those of the pairs that are there already, and by the
            data where there are none.
        location: a folder or a URL (s3://, gs://) below which the store is made, for pairs that
            are to lie somewhere else than in the project, which then has a reference to them.
    """

    source: Literal["sample"] = "sample"
    solver: SolverConfig
    guidance: GuidanceConfig | None = None
    train: int = Field(ge=1)
    validation: int = Field(ge=2)
    test: int = Field(ge=2)
    precision: Precision = "auto"
    batch: int = Field(500, ge=1)
    shard: int = Field(2000, ge=1)
    chunk: int = Field(500, ge=1)
    noise: Literal["stored", "seeded"] = "stored"
    noise_dtype: Literal["float16", "float32"] = "float16"
    sample_dtype: SampleDtype = "uint8"
    states: int = Field(0, ge=0)
    labels: Literal["data", "uniform"] | None = None
    location: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _aligned(self) -> "PairsConfig":
        for name in ("batch", "chunk"):
            value = getattr(self, name)
            if self.shard % value:
                raise ValueError(f"shard: {self.shard} is no multiple of {name}: {value}")
        return self

    @field_validator("location")
    @classmethod
    def _writable(cls, location: str | None) -> str | None:
        return location if location is None else writable_location(location)


def check_plan(config: PairsConfig, teacher: Teacher) -> None:
    """Make sure that a teacher, which needs no weights for that, can be sampled as asked.

    Raises:
        KDMError, ValueError: the solver's grid or the states to be kept do not suit it.
    """
    kept_states(teacher, teacher.times(config.solver), config.states)


def plan_store(
    config: PairsConfig, teacher: Teacher, teacher_fingerprint: str, guide: str | None, seed: int,
    device: torch.device,
) -> StoreSpec:
    """What the store will hold when it is complete, its labels drawn uniformly.

    The data's frequencies are known to the caller: `StoreSpec.with_labels`.

    Args:
        teacher: as it is sampled, guidance included.
        teacher_fingerprint, guide: of the teacher, and of the weaker one if it has one.

    Raises:
        KDMError: the parameters do not fit the teacher.
    """
    require_dtype(teacher.spec, config.sample_dtype)
    say_cut(config.solver.grid, teacher)
    times = teacher.times(config.solver)
    return StoreSpec(
        schema_version=schema_for(teacher.spec, config.sample_dtype),
        samples=teacher.spec,
        teacher=teacher_fingerprint,
        noise_seed=seed,
        noise=config.noise,
        noise_check=check_value(seed, teacher.spec.sample_shape, config.noise_dtype)
        if config.noise == "seeded" else None,
        noise_dtype=config.noise_dtype,
        noise_scale=float(teacher.noise_scale(times[0])),
        sample_dtype=config.sample_dtype,
        solver=config.solver,
        times=times.tolist(),
        nfe=count_evaluations(config.solver, teacher),
        guidance=config.guidance,
        guide=guide,
        compute_batch=config.batch,
        precision=resolve_precision(config.precision, device),
        splits={"test": config.test, "validation": config.validation, "train": config.train},
        chunk=config.chunk,
        shard=config.shard,
        states=kept_states(teacher, times, config.states),
        maker=MAKER,
    )


def say_cut(grid: GridConfig | None, teacher: Teacher) -> None:
    """Say where a grid that was asked for goes beyond the noise levels that the teacher knows."""
    for name, known, beyond in (("sigma_min", teacher.lowest, operator.lt),
                                ("sigma_max", teacher.highest, operator.gt)):
        asked = getattr(grid, name, None)
        if asked is not None and beyond(asked, known):
            adapted(f"{asked:g} is beyond the teacher's noise levels; {known:g} is used",
                    field=f"solver.grid.{name}")


def kept_states(teacher: Teacher, times: Tensor, count: int) -> list[KeptState]:
    """The states at `count` of a solver's times, their positions as even as the times allow.

    Even in position and not in the solver's steps, since a student that is sampled in several
    steps takes them even in position; grids such as EDM's crowd at both ends of it.

    Raises:
        KDMError: there are not as many times between the first and the last.
    """
    inner = len(times) - 2
    if count > inner:
        raise KDMError(f"{count} states cannot be kept, the solver's grid has {inner} between "
                       "noise and samples; lower it to that, or take more steps", field="states")
    alpha, sigma = teacher.path(times)
    signal = alpha * teacher.spec.sigma_data
    positions, scales = 2 / pi * torch.atan2(sigma, signal), torch.hypot(sigma, signal)
    kept: list[KeptState] = []
    for rank in range(count):
        nearest = int((positions - (1 - (rank + 1) / (count + 1))).abs().argmin())
        # Each has a time of its own, so some must be left for those that follow.
        first, last = (kept[-1].place if kept else 0) + 1, inner - (count - 1 - rank)
        place = min(max(nearest, first), last)
        kept.append(KeptState(place=place, position=float(positions[place]),
                              scale=float(scales[place])))
    return kept


def count_evaluations(solver: SolverConfig, teacher: Teacher) -> int | None:
    """Runs of a network that one sample takes; None where that depends on the sample."""
    if isinstance(solver, AdaptiveSolver):
        return None

    class Still:
        """An ODE of no motion, solved for the sake of the count."""

        ends_singular = teacher.ends_singular

        def velocity(self, state: Tensor, time: Tensor) -> Tensor:
            return torch.zeros_like(state)

        denoise = velocity

        def path(self, time: Tensor) -> Path:
            return teacher.path(time)

    found = solve(solver, Still(), torch.zeros(1, dtype=torch.float64), teacher.times(solver))
    return found.nfe * teacher.evaluations


def sample_batch(
    spec: StoreSpec, teacher: Teacher, batch: int, device: torch.device
) -> tuple[Block, float]:
    """The pairs of one compute batch: `compute_batch` consecutive indices.

    Always a whole one, even past the end of the store: a batch's size can change the last bit of
    its results, and the same pairs must come out when the store has grown.

    Returns:
        The pairs, as they are stored, and the evaluations a pair that they took.

    Raises:
        MismatchError: the pairs were imported, and have no seed.
        DivergedError: the teacher made values that are not finite.
    """
    indices = np.arange(batch * spec.compute_batch, (batch + 1) * spec.compute_batch)
    noise, labels = spec.draw(indices)
    given = spec.samples.told(torch.from_numpy(labels).to(device))
    x = torch.from_numpy(noise).to(device, torch.float32)
    found = teacher.sample(x, given, spec.known_solver, spec.precision,
                           keep_states=[state.place for state in spec.states],
                           times=torch.tensor(spec.times, dtype=torch.float64))
    trajectory = None
    if found.states is not None:
        scales = torch.tensor([state.scale for state in spec.states], device=device)
        unit = found.states.transpose(0, 1) / scales.reshape(-1, *[1] * (x.ndim - 1))
        trajectory = unit.to(torch.float16).cpu()
    sample = found.state.cpu()
    if not sample.isfinite().all() or (trajectory is not None and not trajectory.isfinite().all()):
        raise DivergedError(f"the teacher {str(spec.teacher)[:12]} makes samples that are not "
                            f"finite (pairs {indices[0]} to {indices[-1] + 1}): a trained one may "
                            "need precision: fp32 or a lower scale of guidance, one trained here "
                            "a lower learning rate (lr)")
    stored = as_stored(sample, spec.sample_dtype)
    return (Block(noise, stored.numpy(), labels, indices,
                  None if trajectory is None else trajectory.numpy()), found.nfe)


def sample_shard(
    spec: StoreSpec, teacher: Teacher, shard: int, device: torch.device,
    known: Block | None = None,
) -> tuple[Block, float]:
    """The pairs of one shard, in compute batches that do not depend on who asks.

    Args:
        known: the first pairs of the shard, if they are there already but not all; whole compute
            batches of them are not sampled again.

    Returns:
        The pairs, and the evaluations a pair that the sampled ones took.

    Raises:
        DivergedError: the teacher made values that are not finite.
    """
    rows = spec.shard_range(shard)
    whole = len(known.index) // spec.compute_batch if known is not None else 0
    first, stop = rows.start // spec.compute_batch + whole, -(-rows.stop // spec.compute_batch)
    made = [sample_batch(spec, teacher, batch, device) for batch in range(first, stop)]
    blocks = [block for block, _ in made]
    if known is not None:
        blocks.insert(0, join_blocks([known], whole * spec.compute_batch))
    return join_blocks(blocks, len(rows)), sum(nfe for _, nfe in made) / len(made)


def join_blocks(blocks: list[Block], count: int) -> Block:
    """The first `count` pairs of consecutive blocks as one."""
    joined: list[Any] = [None if parts[0] is None else np.concatenate(parts)[:count]
                         for parts in zip(*blocks, strict=True)]
    return Block(*joined)


Part = tuple[int, int]
WHOLE: Part = (1, 1)


def shards_of_part(spec: StoreSpec, part: Part) -> range:
    """The shards of part k of n, of which each has as many as another, or one more.

    Raises:
        KDMError: there is no such part.
    """
    k, n = part
    if not 1 <= k <= n:
        raise KDMError(f"there is no part {k}/{n}: parts are 1/{max(n, 1)} to "
                       f"{max(n, 1)}/{max(n, 1)}")
    return range((k - 1) * spec.num_shards // n, k * spec.num_shards // n)


class Sampled(NamedTuple):
    """What became of a shard.

    Attributes:
        complete: False if another process is writing it.
        nfe: evaluations a pair; None if it was not sampled here.
    """

    complete: bool
    nfe: float | None


def sampler(
    store: PairStore, teacher: Teacher, device: torch.device
) -> Callable[[int], Sampled]:
    """A function that samples and writes a shard, unless it is there or another process is at it.
    """

    def sample(shard: int) -> Sampled:
        with try_claim(store.location, shard) as ours:
            if store.is_complete(shard):
                return Sampled(True, None)
            if not ours:
                return Sampled(False, None)
            block, nfe = sample_shard(store.spec, teacher, shard, device)
            # Behind URLs nothing is claimed: another process may have been faster, and to write
            # over its shard would take it from readers for a while.
            if not store.is_complete(shard):
                store.write_shard(shard, block, claimed=True)
        return Sampled(True, nfe)

    return sample


def sample_missing(
    store: PairStore, teacher: Teacher, device: torch.device, part: Part = WHOLE
) -> Iterator[tuple[int, float]]:
    """Fill the shards that a store still misses, and tell of each when it is written.

    Any number of processes may do so at once. A shard that another one is working on is left to
    it, unless that one is gone when all others are done.

    Yields:
        The shard, and the evaluations a pair that it took.
    """
    sample, shards = sampler(store, teacher, device), shards_of_part(store.spec, part)
    store.remove_leftovers()
    again = True
    while again:
        written = busy = False
        for shard in [shard for shard in shards if not store.is_complete(shard)]:
            found = sample(shard)
            busy = busy or not found.complete
            if found.nfe is not None:
                written = True
                yield shard, found.nfe
        again = written and busy


def sample_pairs(
    store: PairStore,
    teacher: Teacher,
    device: torch.device,
    on_pairs: Callable[[int], None] = lambda pairs: None,
    part: Part = WHOLE,
) -> float | None:
    """Fill a store, or a part of it, as `sample_missing` does.

    Args:
        on_pairs: is told the number of pairs of each shard that is written.

    Returns:
        The evaluations a pair, as counted; None if there was nothing left to do.
    """
    counts = []
    for shard, nfe in sample_missing(store, teacher, device, part):
        counts.append(nfe)
        on_pairs(len(store.spec.shard_range(shard)))
    return sum(counts) / len(counts) if counts else None
