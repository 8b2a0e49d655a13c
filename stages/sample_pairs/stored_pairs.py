"""Taking over pairs that have been sampled already, in place of sampling them."""

import shutil

from kdm_core.datasets import open_dataset
from kdm_core.errors import DataError, MismatchError
from kdm_core.pairs.copying import copy_store
from kdm_core.pairs.opening import open_unfinished
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import PairStore
from kdm_core.serialization import write_json
from kdm_core.teachers import load_sampled
from pipeline.params.fitting import check_against, check_stored
from pipeline.params.pairs import StoredPairs
from pipeline.params.teacher import NoTeacher
from pipeline.runtime import paths
from pipeline.runtime.latents import learned_data
from pipeline.runtime.progress import Progress
from pipeline.runtime.runner import Stage


def take(stage: Stage, config: StoredPairs) -> None:
    """The work of sample_pairs where the pairs come from a store: check them, and take them over.

    Raises:
        DataError: the store is not complete, damaged, or cannot be read.
        MismatchError: its pairs are not those of this project's teacher, or not the pinned ones.
        ParamsError: they are not what the students of params.yaml need.
    """
    source = PairStore.open(config.location)
    require_teacher(stage, source)
    require_complete(source)
    folder, _ = stage.work_folder(source.spec.fingerprint, config.location)
    work = folder / "pairs.zarr"
    open_unfinished(work, source.spec, stage.say)
    with Progress("pairs", source.spec.count, "pair") as progress:
        store = copy_store(source, work, link=True, on_pairs=progress.update,
                           on_start=progress.resume)
    content = store.content_hash()
    if config.content not in (None, content):
        shutil.rmtree(work)  # else the next run would go on with these
        raise MismatchError(f"{config.location} has the content {content}, and pairs.content in "
                            f"params.yaml pins {config.content}: choose one of them")
    if config.content is None:
        stage.say(f"to notice when {config.location} changes, pin it: pairs.content: {content}")
    stage.finish(work, paths.PAIRS)
    write_details(source.spec)
    stage.write_timing(pairs_per_s=round(progress.rate, 1), content=content)
    stage.say(f"{source.spec.count:,} pairs of {config.location}, content {content[:12]}")


def write_details(spec: StoreSpec) -> None:
    """What the pairs are, and not how they came about."""
    known = spec.nfe is not None and spec.source == "teacher"
    write_json(paths.DETAILS / "sample_pairs.json",
               {"pairs": spec.count} | ({"nfe": spec.nfe} if known else {}))


def require_complete(source: PairStore) -> None:
    """Make sure that no pairs are missing.

    Raises:
        DataError: some are.
    """
    if missing := source.missing_shards():
        lost = sum(len(source.spec.shard_range(shard)) for shard in missing)
        raise DataError(f"{source.location} lacks {lost:,} of its {source.spec.count:,} pairs: "
                        "sample them (kdm pairs sample), or run kdm pairs verify")


def require_teacher(stage: Stage, source: PairStore) -> None:
    """Make sure that the pairs are those of the teacher in data/teacher, or might be, or that none
    is asked for, and that they suffice.

    Raises:
        MismatchError: they are not, or nobody knows how that teacher was solved.
        ParamsError: they are not what the students of params.yaml need.
    """
    spec = source.spec
    if isinstance(stage.params.teacher, NoTeacher):
        samples = open_dataset(learned_data(stage.params))[0].info.samples
        check_against(stage.params, spec.samples)
        check_stored(stage.params, spec, samples, "the data are")
        return
    teacher, mark, guide = load_sampled(paths.TEACHER, spec.guidance, stage.params.trusts_code,
                                        done=True)
    check_against(stage.params, teacher.spec)
    check_stored(stage.params, spec, teacher.spec)
    if spec.teacher is None:
        stage.note("nobody wrote down which teacher made these pairs: students are measured beside "
                   "the pairs' own samples, and not beside the teacher of this project")
        return
    _ = spec.known_solver  # with which evaluations solve it again
    if (spec.teacher, spec.guide) != (mark, guide):
        raise MismatchError(
            f"{source.location} was made by the teacher {marks(spec.teacher, spec.guide)}, and "
            f"{paths.TEACHER} is {marks(mark, guide)}: take over the teacher, too "
            "(teacher.source: folder), or choose other pairs")


def marks(teacher: str, guide: str | None) -> str:
    """Short names of a teacher and its guide."""
    return teacher[:12] + (f" with the guide {guide[:12]}" if guide is not None else "")
