"""sample_pairs: noise and what the teacher makes of it, into a Zarr store."""

import platform
import shutil
from pathlib import Path

import numpy
import torch
import zarr

import kdm_core
from kdm_core.errors import DataError, KDMError
from kdm_core.pairs.sampling import plan_store, sample_pairs
from kdm_core.pairs.store import PairStore, StoreSpec
from kdm_core.serialization import write_json
from kdm_core.teachers import load_sampled
from pipeline.params import ParamsError
from stages import paths
from stages.progress import Progress
from stages.runner import Stage, run


def main(stage: Stage) -> None:
    teacher, mark, guide = load_sampled(paths.TEACHER, stage.params.pairs.guidance,
                                        stage.params.trusts_code)
    stage.params.check_against(teacher.spec)
    teacher.to(stage.device)
    try:
        spec = plan_store(stage.params.pairs, teacher, mark, guide, stage.seed("noise"),
                          stage.device)
    except ValueError as error:
        raise ParamsError(f"params.yaml: {error}") from error
    # Pairs of another device or thread count agree only to rounding: they are not mixed.
    folder, _ = stage.work_folder(spec.fingerprint, stage.device.type, torch.get_num_threads())
    work = folder / "pairs.zarr"
    store = open_or_create(stage, work, spec)
    done = spec.count - sum(len(spec.shard_range(shard)) for shard in store.missing_shards())
    if done:
        stage.say(f"going on after {done:,} pairs")
    with Progress("pairs", spec.count, "pair", done) as progress:
        evaluations = sample_pairs(store, teacher, stage.device, progress.update)
    content = store.content_hash()
    stage.finish(work, paths.PAIRS)
    # An adaptive solver's evaluations are counted: unknown if an earlier run had sampled all pairs.
    nfe = spec.nfe or evaluations
    write_json(paths.METRICS / "sample_pairs.json",
               {"pairs": spec.count} | ({} if nfe is None else {"nfe": nfe}))
    stage.write_timing(pairs_per_s=round(progress.rate, 1), content=content)
    stage.say(f"{spec.count:,} pairs of {'?' if nfe is None else f'{nfe:g}'} evaluations each, "
              f"content {content[:12]}")


def open_or_create(stage: Stage, path: Path, spec: StoreSpec) -> PairStore:
    """The unfinished store of an earlier run if it is whole, a new one otherwise."""
    if path.exists():
        try:
            store = PairStore.open(path, writable=True)
            store.require(spec)
            return store
        except KDMError as error:
            stage.say(f"starting over: {error}")
            shutil.rmtree(path)
    require_space(path, spec)
    return PairStore.create(path, spec, {
        "created_by": f"kdm-distill {kdm_core.__version__}",
        "device": stage.device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "zarr": zarr.__version__,
        "machine": platform.machine(),
    })


def require_space(path: Path, spec: StoreSpec) -> None:
    """Fail before the work and not after it when the store cannot fit."""
    values = numpy.prod(spec.samples.sample_shape)
    size = int(spec.count * values * (numpy.dtype(spec.noise_dtype).itemsize
                                      + numpy.dtype(spec.sample_dtype).itemsize
                                      + len(spec.states) * numpy.dtype("float16").itemsize))
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise DataError(f"{path}: the pairs need up to {size / 1e6:,.0f} MB, {free / 1e6:,.0f} MB "
                        "are free: make room or lower pairs.train")


if __name__ == "__main__":
    run("sample_pairs", main)
