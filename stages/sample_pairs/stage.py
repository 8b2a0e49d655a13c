"""sample_pairs: noise and what the teacher makes of it, into a Zarr store."""

from pathlib import Path

from kdm_core.pairs.opening import open_or_create, open_unfinished
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import PairStore
from pipeline.pairs.filling import fill, note_how_made, plan, provenance, require_complete
from pipeline.pairs.kept import keep
from pipeline.params.pairs import StoredPairs
from pipeline.runtime import paths
from pipeline.runtime.runner import Stage
from pipeline.runtime.stopping import stoppable
from pipeline.workers.engine import engine
from pipeline.workers.tasks import Engine
from stages.sample_pairs.elsewhere import DIGITS, UNFINISHED, place_of, refer, stores_there
from stages.sample_pairs.growing import adopt
from stages.sample_pairs.stored_pairs import take, write_details


def main(stage: Stage) -> None:
    if isinstance(stage.params.pairs, StoredPairs):
        take(stage, stage.params.pairs)
        return
    with stoppable(stage.say) as stop, engine(stage, stop) as workers:
        sample(stage, workers)


def sample(stage: Stage, workers: Engine) -> None:
    """Sample what is not there yet, and put the finished store in its place."""
    location = stage.params.pairs.location
    there = list(stores_there(location, stage.say))
    teacher, spec = plan(stage, lambda spec: there)
    store, work, former = begin(stage, spec, [one for one in there
                                              if one.spec.stream == spec.stream])
    for other in former:
        if taken := adopt(store, other, teacher, stage.device, stage.say):
            stage.say(f"{taken:,} pairs are those of {other.location}")
            note_how_made(stage, other)
    filled = fill(stage, store, teacher, workers)
    require_complete(store)
    content = store.content_hash()
    if location is None:
        keep(work, spec.fingerprint[:DIGITS], stage.say)
    else:
        refer(store, content, work)
    stage.finish(work, paths.PAIRS)
    write_details(spec)
    # An adaptive solver's evaluations are counted, but only for the pairs that this run sampled.
    nfe = spec.nfe or filled.nfe
    stage.write_timing(pairs_per_s=round(filled.pairs_per_s, 1), content=content,
                       workers=workers.workers, **({} if nfe is None else {"nfe": nfe}))
    stage.say(f"{spec.count:,} pairs of {'?' if nfe is None else f'{nfe:g}'} evaluations each, "
              f"content {content[:12]}")


def begin(
    stage: Stage, spec: StoreSpec, there: list[PairStore]
) -> tuple[PairStore, Path, list[PairStore]]:
    """What to fill.

    Args:
        there: stores that hold such pairs, more or fewer of them.

    Returns:
        The store, new or of a run that did not come to its end; the folder to be moved to
        `paths.PAIRS` when it is complete; and stores to take pairs from.
    """
    location = stage.params.pairs.location
    below = UNFINISHED if location is None else location
    own = next((one for one in there if one.spec.fingerprint == spec.fingerprint
                and str(one.location).startswith(f"{below}/".replace("//", "/"))), None)
    former = [one for one in there if one is not own]
    made_with = provenance(stage, spec, former)
    if location is not None:
        # Of its own: the fingerprint's may hold pairs of before there was a location.
        work = stage.work_folder(spec.fingerprint, location)[0] / "pairs.zarr"
        place = place_of(location, spec) if own is None else own.location
        return open_or_create(place, spec, made_with), work, former
    # An earlier release may have called the folder otherwise.
    name = spec.fingerprint if own is None else Path(own.location).parent.name
    work = stage.folder_of(name) / "pairs.zarr"
    store = open_unfinished(work, spec, stage.say) or PairStore.create(work, spec, made_with)
    return store, work, former
