"""sample_pairs: noise and what the teacher makes of it, into a Zarr store."""

import shutil
from pathlib import Path

from kdm_core.errors import KDMError
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import PairStore
from kdm_core.serialization import write_json
from pipeline.params import StoredPairs
from stages import paths
from stages.filling import conditions, fill, plan, provenance, require_complete
from stages.growing import adopt
from stages.kept_pairs import find_kept, keep
from stages.runner import Stage, run
from stages.stored_pairs import take


def main(stage: Stage) -> None:
    if isinstance(stage.params.pairs, StoredPairs):
        take(stage, stage.params.pairs)
        return
    teacher, spec = plan(stage)
    # Pairs of another device or thread count agree only to rounding: they are not mixed.
    folder, _ = stage.work_folder(spec.fingerprint, conditions(stage))
    kept_key = stage.key(spec.stream, conditions(stage))[:16]
    work = folder / "pairs.zarr"
    store = open_or_restart(stage, work, spec)
    kept = find_kept(kept_key, spec.stream, stage.say)
    if kept is not None:
        taken = adopt(store, kept, teacher, stage.device, stage.say)
        stage.say(f"{taken:,} pairs are those of the last run")
    filled = fill(stage, store, teacher)
    require_complete(store)
    content = store.content_hash()
    keep(work, kept_key, stage.say)
    stage.finish(work, paths.PAIRS)
    # An adaptive solver's evaluations are counted: unknown if an earlier run had sampled all pairs.
    nfe = spec.nfe or filled.nfe
    write_json(paths.METRICS / "sample_pairs.json",
               {"pairs": spec.count} | ({} if nfe is None else {"nfe": nfe}))
    stage.write_timing(pairs_per_s=round(filled.pairs_per_s, 1), content=content,
                       workers=stage.params.execution.sampling.workers or 1)
    stage.say(f"{spec.count:,} pairs of {'?' if nfe is None else f'{nfe:g}'} evaluations each, "
              f"content {content[:12]}")


def open_or_restart(stage: Stage, path: Path, spec: StoreSpec) -> PairStore:
    """The unfinished store of an earlier run if it is whole, a new one otherwise."""
    if path.exists():
        try:
            store = PairStore.open(path, writable=True)
            store.require(spec)
            return store
        except KDMError as error:
            stage.say(f"starting over: {error}")
            shutil.rmtree(path)
    return PairStore.create(path, spec, provenance(stage))


if __name__ == "__main__":
    run("sample_pairs", main)
