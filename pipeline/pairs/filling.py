"""Filling a pair store as params.yaml says: planned, with enough space, by its engine."""

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
import zarr

import kdm_core
from kdm_core.errors import KDMError, naming, placed
from kdm_core.pairs.claims import is_claimed
from kdm_core.pairs.opening import open_or_create, require_space
from kdm_core.pairs.sampling import (
    WHOLE,
    PairsConfig,
    Part,
    Sampled,
    plan_store,
    sampler,
    shards_of_part,
)
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import PairStore
from kdm_core.teachers import Teacher, load_sampled
from pipeline.pairs.label_law import with_law
from pipeline.params.fitting import check_against
from pipeline.params.reading import ParamsError
from pipeline.runtime import paths
from pipeline.runtime.progress import Progress
from pipeline.runtime.runner import Stage
from pipeline.runtime.stopping import stoppable
from pipeline.workers.engine import engine
from pipeline.workers.fitness import processor
from pipeline.workers.sampling import SamplingTask
from pipeline.workers.tasks import Engine, Folder

BUSY_S = 0.5
"""Between two looks at what other processes are writing."""


class Filled(NamedTuple):
    """What filling a store took.

    Attributes:
        pairs_per_s: of this run.
        nfe: evaluations a pair, as counted in this run; None if nothing was left to do.
    """

    pairs_per_s: float
    nfe: float | None


def plan(
    stage: Stage, there: Callable[[StoreSpec], Iterable[PairStore]]
) -> tuple[Teacher, StoreSpec]:
    """The teacher of this project on the stage's device, and what params.yaml wants of it.

    Args:
        there: stores that may hold such pairs already, whose labels may be drawn otherwise.

    Raises:
        KDMError: there is no teacher, or the parameters do not fit it.
    """
    config = stage.params.pairs
    if not isinstance(config, PairsConfig):
        raise ParamsError(f"params.yaml: pairs.source: {config.source} takes pairs that are "
                          "there already; use sample to make some")
    with naming(lambda field: f"{'pairs' if 'guidance' in field else 'teacher'}.{field}"):
        teacher, mark, guide = load_sampled(paths.TEACHER, config.guidance,
                                            stage.params.trusts_code)
    check_against(stage.params, teacher.spec)
    teacher.to(stage.device)
    with placed("pairs"):
        spec = plan_store(config, teacher, mark, guide, stage.seed("noise"), stage.device)
    return teacher, with_law(stage, config, spec, there(spec))


def conditions(stage: Stage) -> dict[str, Any]:
    """What the last bits of the pairs depend on besides their specification."""
    return {"device": stage.device.type, "threads": torch.get_num_threads(),
            "torch": torch.__version__, "machine": platform.machine()}


def opened(locations: Iterable[Path | str]) -> Iterator[PairStore]:
    """The stores at those of some places where there is one that can be read."""
    for location in locations:
        with suppress(KDMError):
            yield PairStore.open(location)


def provenance(stage: Stage, spec: StoreSpec, former: Sequence[PairStore] = ()) -> dict[str, Any]:
    """Where and with what a store is made.

    Args:
        former: stores whose pairs it takes over. It is told of as the first of these, and what the
            others of its pairs are made with as `continued`, where that is something else.
    """
    here = {"created_by": f"kdm-distill {kdm_core.__version__}", "numpy": numpy.__version__,
            "zarr": zarr.__version__, **conditions(stage), "processor": processor(stage.device)}
    if not former:
        return here
    first = former[0]
    same = first.spec.fingerprint == spec.fingerprint or not other_conditions(stage, first)
    return first.provenance if same else {**first.provenance, "continued": here}


def fill(
    stage: Stage, store: PairStore, teacher: Teacher, workers: Engine, part: Part = WHOLE
) -> Filled:
    """Sample what a store misses.

    Shards that other programs are working on are left to them.

    Raises:
        KDMError: the disk is too small, the teacher diverges, or as the engine.
        Stopped: the program was asked to end; what is complete is kept.
    """
    spec = store.spec
    every, missing = shards_of_part(spec, part), missing_of(store, part)
    total, left = (sum(len(spec.shard_range(shard)) for shard in some) for some in (every, missing))
    require_space(store, left)
    if left:
        note_how_made(stage, store)
    task = SamplingTask(str(store.location), Folder(paths.TEACHER), stage.params.trusts_code)
    own = placed("pairs")(sampler(store, teacher, stage.device))
    counts: dict[int, float] = {}
    with Progress("pairs", total, "pair", total - left) as progress:
        for shards in rounds(store, part, workers.patience_s):

            def on_shard(place: int, found: Sampled, shards: list[int] = shards) -> None:
                if found.nfe is not None:
                    counts[shards[place]] = found.nfe
                if found.complete:
                    progress.update(len(spec.shard_range(shards[place])))

            workers.run(task, shards, on_shard, own)
    # In the order of the shards, since another one could round differently.
    mean = sum(counts[shard] for shard in sorted(counts)) / len(counts) if counts else None
    return Filled(progress.rate, mean)


def missing_of(store: PairStore, part: Part) -> list[int]:
    """The shards of a part that are not complete."""
    return [shard for shard in shards_of_part(store.spec, part) if not store.is_complete(shard)]


def rounds(store: PairStore, part: Part, patience_s: float) -> Iterator[list[int]]:
    """Missing shards that are free, again and again until none is missing, or others keep them.

    `patience_s`: how long to wait where others hold all that is missing, as workers do for a while
    that have lost their scheduler.
    """
    store.remove_leftovers()
    before, deadline = None, time.monotonic() + patience_s
    while missing := missing_of(store, part):
        if missing != before:
            deadline = time.monotonic() + patience_s
        elif time.monotonic() >= deadline:
            return
        else:
            time.sleep(BUSY_S)
        if free := [shard for shard in missing if not is_claimed(store.location, shard)]:
            yield free
        store.remove_leftovers()
        before = missing


def note_how_made(stage: Stage, store: PairStore) -> None:
    """Tell if pairs that are there were made with something else than the others will be."""
    if differences := other_conditions(stage, store):
        stage.note(f"pairs in {store.location} were made with {', '.join(differences)}: the same "
                   "pairs sampled here would agree to rounding")


def other_conditions(stage: Stage, store: PairStore) -> list[str]:
    """What a store was made with that is otherwise here."""
    here = {**conditions(stage), "processor": processor(stage.device)}
    return [f"{key} {value} (here {here[key]})" for key, value in store.provenance.items()
            if key in here and value != here[key]]


def require_complete(store: PairStore) -> None:
    """Make sure that no shard was left to another program.

    Raises:
        KDMError: some were.
    """
    if missing := store.missing_shards():
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
        Stopped: as `fill`.
    """
    with stoppable(stage.say) as stop, engine(stage, stop) as workers:
        teacher, spec = plan(stage, lambda spec: opened([location]))
        store = open_or_create(location, spec, provenance(stage, spec))
        fill(stage, store, teacher, workers, part)
    return store
