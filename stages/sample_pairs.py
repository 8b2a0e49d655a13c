"""sample_pairs: noise and what the teacher makes of it, into a Zarr store."""

from collections.abc import Iterator
from pathlib import Path

from kdm_core.pairs.opening import open_or_create, open_unfinished
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import PairStore
from pipeline.params import StoredPairs
from stages import paths
from stages.elsewhere import find_former, place_of, places_below, refer
from stages.execution.engine import engine
from stages.execution.tasks import Engine
from stages.filling import conditions, fill, opened, plan, provenance, require_complete
from stages.growing import adopt
from stages.kept_pairs import KEPT, find_kept, keep
from stages.runner import Stage, run
from stages.stopping import stoppable
from stages.stored_pairs import take, write_metrics


def main(stage: Stage) -> None:
    if isinstance(stage.params.pairs, StoredPairs):
        take(stage, stage.params.pairs)
        return
    with stoppable(stage.say) as stop, engine(stage, stop) as workers:
        sample(stage, workers)


def sample(stage: Stage, workers: Engine) -> None:
    """Sample what is not there yet, and put the finished store in its place."""
    teacher, spec = plan(stage, lambda spec: opened(places(stage, spec)))
    # Pairs of another device or thread count agree only to rounding: they are not mixed.
    location = stage.params.pairs.location
    folder, _ = stage.work_folder(spec.fingerprint, conditions(stage), location)
    key, work = key_of(stage, spec), folder / "pairs.zarr"
    store, former = begin(stage, spec, key, work)
    for other in former:
        if taken := adopt(store, other, teacher, stage.device, stage.say):
            stage.say(f"{taken:,} pairs are those of {other.location}")
    filled = fill(stage, store, teacher, workers)
    require_complete(store)
    content = store.content_hash()
    if location is None:
        keep(work, key[:16], stage.say)
    else:
        refer(store, content, work)
    stage.finish(work, paths.PAIRS)
    write_metrics(spec)
    # An adaptive solver's evaluations are counted, but only for the pairs that this run sampled.
    nfe = spec.nfe or filled.nfe
    stage.write_timing(pairs_per_s=round(filled.pairs_per_s, 1), content=content,
                       workers=workers.workers, **({} if nfe is None else {"nfe": nfe}))
    stage.say(f"{spec.count:,} pairs of {'?' if nfe is None else f'{nfe:g}'} evaluations each, "
              f"content {content[:12]}")


def key_of(stage: Stage, spec: StoreSpec) -> str:
    """A key of all that samples depend on but for their number and the law of their labels."""
    return stage.key(spec.with_labels(None).stream, conditions(stage))


def places(stage: Stage, spec: StoreSpec) -> Iterator[Path | str]:
    """Where this project's unfinished and finished pairs may be, of whatever law of labels."""
    location = stage.params.pairs.location
    if location is not None:
        yield from places_below(location, key_of(stage, spec))
    yield from (paths.WORK / "sample_pairs").glob("*/pairs.zarr")
    yield from (paths.PAIRS, *KEPT.glob("[!.]*"))


def begin(
    stage: Stage, spec: StoreSpec, key: str, work: Path
) -> tuple[PairStore, list[PairStore]]:
    """The store to fill, new or of an unfinished run, and others that have pairs of it.

    Args:
        key: as from `key_of`.
        work: where the store is made if it is to lie in the project.
    """
    kept, location = find_kept(key[:16], spec.stream, stage.say), stage.params.pairs.location
    former = [] if kept is None else [kept]
    if location is None:
        store = open_unfinished(work, spec, stage.say)
        return store or PairStore.create(work, spec, provenance(stage)), former
    store = open_or_create(place_of(location, key, spec), spec, provenance(stage))
    return store, former + find_former(location, key, spec, stage.say)


if __name__ == "__main__":
    run("sample_pairs", main)
