"""What store the pairs of others make."""

from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator

from kdm_core.classes import match_classes
from kdm_core.config import Config
from kdm_core.datasets.base import RENUMBER, absent, have
from kdm_core.errors import DataError, MismatchError, adapted, called
from kdm_core.pairs.importing.measuring import Measured, find_scale, measure
from kdm_core.pairs.importing.source import PairSource
from kdm_core.pairs.sampling import count_evaluations
from kdm_core.pairs.spec import StoreSpec, require_dtype, schema_for
from kdm_core.samples import Kind, SampleSpec
from kdm_core.solvers import SolverConfig
from kdm_core.teachers.base import Teacher
from kdm_core.values import SampleDtype

USUAL: dict[Kind, SampleDtype] = {"image": "uint8", "latent": "float16", "points": "float32"}
"""As which values samples are kept where nobody says it."""


class ImportConfig(Config):
    """How pairs of others are stored.

    Attributes:
        test, validation: pairs of these splits, the first ones; the rest are train pairs.
        noise_scale: what the noise is divided by; None for what is measured.
        sample_dtype: None for uint8 images, float16 latents and float32 points.
        solver: how the teacher was solved, if that is known.
        shard, chunk: pairs a file, and that are compressed together.
    """

    test: int = Field(1000, ge=2)
    validation: int = Field(1000, ge=2)
    noise_scale: float | None = Field(None, gt=0)
    noise_dtype: Literal["float16", "float32"] = "float16"
    sample_dtype: SampleDtype | None = None
    solver: SolverConfig | None = None
    shard: int = Field(10_000, ge=1)
    chunk: int = Field(500, ge=1)

    @model_validator(mode="after")
    def _aligned(self) -> "ImportConfig":
        if self.shard % self.chunk:
            raise ValueError(f"shard: {self.shard} is no multiple of chunk: {self.chunk}")
        return self


class KnownTeacher(NamedTuple):
    """The teacher that the pairs are said to come from, and its fingerprint."""

    model: Teacher
    fingerprint: str


class ImportPlan(NamedTuple):
    """The store that pairs of others will make, what their noise is divided by, and why."""

    spec: StoreSpec
    scale: float
    measured: Measured


def plan_import(
    source: PairSource, config: ImportConfig, teacher: KnownTeacher | None = None
) -> ImportPlan:
    """Look at the pairs, and say what store they will make.

    Raises:
        DataError: the noise is not normal, samples are out of range, there are too few pairs, or a
            class has none of them to train on.
        MismatchError: the teacher makes other samples.
    """
    train = source.count - config.test - config.validation
    if train < 1:
        raise DataError(f"{source.count} pairs are too few for {config.test} test and "
                        f"{config.validation} validation pairs: lower both", field="test")
    measured = measure(source)
    samples = describe_samples(source, measured, teacher)
    require_classes(source, samples.label_names, config.test + config.validation,
                    numbered=source.numbered and teacher is None)
    if teacher is not None and config.solver is not None:
        times, nfe = (teacher.model.times(config.solver),
                      count_evaluations(config.solver, teacher.model))
        start = float(teacher.model.noise_scale(times[0]))
    else:
        times, nfe, start = torch.empty(0), None, None
    scale = find_scale(source, measured, config.noise_scale, start)
    dtype = config.sample_dtype or USUAL[source.kind]
    require_dtype(samples, dtype)
    spec = StoreSpec(
        schema_version=schema_for(samples, dtype),
        samples=samples,
        teacher=None if teacher is None else teacher.fingerprint,
        noise_seed=None,
        noise_dtype=config.noise_dtype,
        noise_scale=start or scale,
        sample_dtype=dtype,
        solver=config.solver,
        times=times.tolist(),
        nfe=nfe,
        compute_batch=config.chunk,
        precision="fp32",
        splits={"test": config.test, "validation": config.validation, "train": train},
        chunk=config.chunk,
        shard=config.shard,
        imported=f"{source.layout}, noise divided by {scale:g}; content {measured.content[:16]}",
    )
    return ImportPlan(spec, scale, measured)


def describe_samples(
    source: PairSource, measured: Measured, teacher: KnownTeacher | None
) -> SampleSpec:
    """What the samples are, in the teacher's words if it is known.

    Raises:
        MismatchError: the teacher makes others.
    """
    found = SampleSpec(kind=source.kind, shape=list(source.shape), label_names=source.label_names,
                       sigma_data=measured.sigma_data)
    if teacher is None:
        return found
    made = teacher.model.spec
    if made.kind != found.kind or made.shape != found.shape:
        raise MismatchError(f"it makes samples of kind {made.kind} and shape {made.shape}, the "
                            f"pairs are of kind {found.kind} and shape {found.shape}",
                            field="teacher")
    # Files without names of classes tell only the largest that occurs. `convert` does the rest.
    if found.num_classes > made.num_classes or bool(found.num_classes) != bool(made.num_classes):
        raise MismatchError(f"it takes {made.num_classes} labels, the pairs have "
                            f"{found.num_classes}", field="teacher")
    match_classes(found.label_names, made.label_names, called("teacher"), "the pairs")
    return made


def require_classes(
    source: PairSource, names: list[str], start: int, numbered: bool
) -> None:
    """Make sure that the classes can be learned; say which ones no pair has.

    Args:
        source: the pairs.
        names: of the classes.
        start: the first training pair.
        numbered: whether that there are so many classes is only concluded from the largest label.

    Raises:
        DataError: a class has no pairs though nobody says that it exists, or none to train on.
    """
    labels = source.labels
    if labels is None or not names:
        return
    if missing := absent(labels, names):
        if numbered:
            raise DataError(f"{source.where(0)} and others: {have(missing, names)} no pairs: "
                            f"{RENUMBER}, or give the teacher of these pairs", field="teacher")
        adapted(f"{source.where(0)} and others: {have(missing, names)} no pairs")
    present, places = np.unique(labels[::-1], return_index=True)
    last = len(labels) - 1 - places
    if untrained := present[last < start].tolist():
        raise DataError(f"{source.where(0)} and others: {have(untrained, names)} no pairs to train "
                        f"on: the first {start} are test and validation pairs. Have fewer of "
                        f"these, {last.min()} together at most, or shuffle the pairs",
                        field="test")
