"""Filling a pair store as params.yaml says: planned, with enough space, by one process or more."""

import platform
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
import zarr

import kdm_core
from kdm_core.errors import KDMError
from kdm_core.pairs.opening import open_or_create, require_space
from kdm_core.pairs.sampling import (
    WHOLE,
    PairsConfig,
    Part,
    plan_store,
    sample_missing,
    shards_of_part,
)
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import PairStore
from kdm_core.teachers import Teacher, load_sampled
from pipeline.params import ParamsError
from stages import paths
from stages.pair_workers import Job, sample_with_workers
from stages.progress import Progress
from stages.runner import Stage


class Filled(NamedTuple):
    """What filling a store took.

    Attributes:
        pairs_per_s: of this run.
        nfe: evaluations a pair, as counted in this run; None if nothing was left to do.
    """

    pairs_per_s: float
    nfe: float | None


def plan(stage: Stage) -> tuple[Teacher, StoreSpec]:
    """The teacher of this project on the stage's device, and what params.yaml wants of it.

    Raises:
        KDMError: there is no teacher, or the parameters do not fit it.
    """
    config = stage.params.pairs
    if not isinstance(config, PairsConfig):
        raise ParamsError(f"params.yaml: pairs.source: {config.source} takes pairs that are "
                          "there already; use sample to make some")
    teacher, mark, guide = load_sampled(paths.TEACHER, config.guidance, stage.params.trusts_code)
    stage.params.check_against(teacher.spec)
    teacher.to(stage.device)
    try:
        return teacher, plan_store(config, teacher, mark, guide, stage.seed("noise"),
                                   stage.device)
    except ValueError as error:
        raise ParamsError(f"params.yaml: {error}") from error


def conditions(stage: Stage) -> dict[str, Any]:
    """What the last bits of the pairs depend on besides their specification."""
    return {"device": stage.device.type, "threads": torch.get_num_threads(),
            "torch": torch.__version__, "machine": platform.machine()}


def provenance(stage: Stage) -> dict[str, Any]:
    """Where and with what a store is made."""
    return {"created_by": f"kdm-distill {kdm_core.__version__}", "numpy": numpy.__version__,
            "zarr": zarr.__version__, **conditions(stage)}


def fill(stage: Stage, store: PairStore, teacher: Teacher, part: Part = WHOLE) -> Filled:
    """Sample what a store misses, with as many processes as params.yaml allows.

    Shards that other programs are working on are left to them.

    Raises:
        KDMError: the disk is too small, the teacher diverges, or all workers were lost.
    """
    spec, shards = store.spec, shards_of_part(store.spec, part)
    missing = [shard for shard in shards if not store.is_complete(shard)]
    left, total = (sum(len(spec.shard_range(shard)) for shard in some)
                   for some in (missing, shards))
    require_space(store, left)
    if left < total:
        stage.say(f"going on after {total - left:,} pairs")
    counts: dict[int, float] = {}
    with Progress("pairs", total, "pair", total - left) as progress:

        def on_shard(shard: int, nfe: float) -> None:
            counts[shard] = nfe
            progress.update(len(spec.shard_range(shard)))

        if (stage.params.execution.sampling.workers or 1) == 1:
            for shard, nfe in sample_missing(store, teacher, stage.device, part):
                on_shard(shard, nfe)
        else:
            fill_with_workers(stage, store, part, on_shard)
    # In the order of the shards, since another one could round differently.
    mean = sum(counts[shard] for shard in sorted(counts)) / len(counts) if counts else None
    return Filled(progress.rate, mean)


def fill_with_workers(stage: Stage, store: PairStore, part: Part, on_shard: Any) -> None:
    """Start workers, and others for what lost ones have left, until there is nothing to do."""
    compute = stage.params.compute
    job = Job(str(store.location), paths.TEACHER, part, str(stage.device),
              torch.get_num_threads(), compute.deterministic, stage.params.trusts_code)
    before = None
    while missing := [shard for shard in shards_of_part(store.spec, part)
                      if not store.is_complete(shard)]:
        if missing == before:  # other programs hold them
            return
        workers = stage.params.execution.sampling.workers or 1
        sample_with_workers(job, min(workers, len(missing)), on_shard, stage.say)
        store.remove_leftovers()
        before = missing


def require_complete(store: PairStore, part: Part = WHOLE) -> None:
    """Make sure that no shard was left to another program.

    Raises:
        KDMError: some were.
    """
    missing = [shard for shard in shards_of_part(store.spec, part)
               if not store.is_complete(shard)]
    if missing:
        raise KDMError(f"{len(missing)} shards of {store.location} (the first is {missing[0]}) "
                       "are being written by other processes: run again when they have ended")


def sample_into(stage: Stage, location: Path | str, part: Part = WHOLE) -> PairStore:
    """Sample the pairs of params.yaml into a store anywhere; goes on with one that is there.

    Args:
        stage: `Stage("sample_pairs")`, whose seeds are those of the pipeline.
        part: which part of the shards; others may be sampled elsewhere and merged.

    Raises:
        MismatchError: the store there holds other pairs.
        KDMError: as `plan` and `fill`.
    """
    teacher, spec = plan(stage)
    store = open_or_create(location, spec, provenance(stage))
    made_with = {key: store.provenance.get(key) for key in conditions(stage)}
    if made_with != conditions(stage):
        stage.say(f"{location} was begun with {made_with}, here are {conditions(stage)}: the "
                  "samples will agree to rounding")
    fill(stage, store, teacher, part)
    return store
