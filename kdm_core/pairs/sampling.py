"""Filling a pair store from a teacher."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from kdm_core.compute import Precision, resolve_precision
from kdm_core.config import Config
from kdm_core.errors import DivergedError
from kdm_core.noise import draw
from kdm_core.pairs.store import Block, PairStore, StoreSpec
from kdm_core.solvers import SolverConfig, solve
from kdm_core.teachers.base import Teacher
from kdm_core.values import to_uint8


class PairsConfig(Config):
    """How many pairs, how they are solved and how they are stored.

    Attributes:
        train, validation, test: pairs of each split; the last two are never trained on.
        batch: pairs that go through the teacher together; the pairs' last bits depend on it.
        shard: pairs a file and a task, a multiple of `batch` and of `chunk`.
        chunk: pairs that are compressed together.
    """

    solver: SolverConfig
    train: int = Field(ge=1)
    validation: int = Field(ge=2)
    test: int = Field(ge=2)
    precision: Precision = "auto"
    batch: int = Field(500, ge=1)
    shard: int = Field(2000, ge=1)
    chunk: int = Field(500, ge=1)
    noise_dtype: Literal["float16", "float32"] = "float16"
    sample_dtype: Literal["uint8", "float32"] = "uint8"

    @model_validator(mode="after")
    def _aligned(self) -> "PairsConfig":
        for name in ("batch", "chunk"):
            value = getattr(self, name)
            if self.shard % value:
                raise ValueError(f"shard: {self.shard} is no multiple of {name}: {value}")
        return self


def plan_store(
    config: PairsConfig, teacher: Teacher, teacher_fingerprint: str, seed: int,
    device: torch.device,
) -> StoreSpec:
    """What the store will hold when it is complete."""
    if teacher.spec.kind != "image" and config.sample_dtype == "uint8":
        raise ValueError("pairs.sample_dtype: uint8 is for images; use float32 for points")
    # Solved for a state of one number and no velocity, to count the evaluations.
    probe = solve(config.solver, lambda state, time: torch.zeros_like(state), torch.zeros(1),
                  teacher.time_grid(config.solver.steps))
    return StoreSpec(
        samples=teacher.spec,
        teacher=teacher_fingerprint,
        noise_seed=seed,
        noise_dtype=config.noise_dtype,
        noise_scale=float(teacher.noise_scale),
        sample_dtype=config.sample_dtype,
        solver=config.solver,
        times=teacher.time_grid(config.solver.steps).tolist(),
        nfe=probe.nfe,
        compute_batch=config.batch,
        precision=resolve_precision(config.precision, device),
        splits={"test": config.test, "validation": config.validation, "train": config.train},
        chunk=config.chunk,
        shard=config.shard,
    )


def sample_shard(spec: StoreSpec, teacher: Teacher, shard: int, device: torch.device) -> Block:
    """The pairs of one shard, in compute batches that do not depend on who asks.

    Raises:
        DivergedError: the teacher made values that are not finite.
    """
    rows = spec.shard_range(shard)
    samples = []
    # Always whole batches, even past the end of the store: a batch's size can change the last bit
    # of its results, and the same pairs must come out when the store has grown.
    stop = rows.start + -(-len(rows) // spec.compute_batch) * spec.compute_batch
    indices = np.arange(rows.start, stop)
    noise, labels = draw(spec.noise_seed, indices, spec.samples.sample_shape, spec.noise_dtype,
                         spec.samples.num_classes)
    for start in range(0, len(indices), spec.compute_batch):
        batch = slice(start, start + spec.compute_batch)
        given = torch.from_numpy(labels[batch]).to(device) if spec.samples.num_classes else None
        x = torch.from_numpy(noise[batch]).to(device, torch.float32)
        samples.append(teacher.sample(x, given, spec.solver, spec.precision).state.cpu())
    sample = torch.cat(samples)[: len(rows)]
    if not sample.isfinite().all():
        raise DivergedError(f"the teacher {spec.teacher[:12]} makes samples that are not finite "
                            f"(pairs {rows.start} to {rows.stop}): train it longer or with a lower "
                            "teacher.training.lr, or use pairs.precision: fp32")
    stored = to_uint8(sample) if spec.sample_dtype == "uint8" else sample
    n = len(rows)
    return Block(noise[:n], stored.numpy(), labels[:n], indices[:n])


def sample_pairs(
    store: PairStore,
    teacher: Teacher,
    device: torch.device,
    on_pairs: Callable[[int], None] = lambda pairs: None,
) -> None:
    """Fill the shards that a store still misses; `on_pairs` is told the pairs of each."""
    store.remove_leftovers()
    for shard in store.missing_shards():
        store.write_shard(shard, sample_shard(store.spec, teacher, shard, device))
        on_pairs(len(store.spec.shard_range(shard)))
