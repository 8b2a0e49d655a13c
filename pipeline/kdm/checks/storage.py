"""Checks of the disk: room for what the parameters make, and what its file system can do."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdm_core.datasets.storage import open_dataset
from kdm_core.errors import KDMError
from kdm_core.pairs.location import local_path
from kdm_core.pairs.opening import stored_bytes
from kdm_core.pairs.sampling import PairsConfig
from kdm_core.pairs.spec import KeptState, StoreSpec
from kdm_core.samples import SampleSpec
from kdm_core.teachers import build_teacher
from kdm_core.training.config import TrainingConfig
from pipeline.kdm.checks.finding import Finding, ok, problem, warning
from pipeline.params.fitting import completed, learned
from pipeline.params.run import Params
from pipeline.params.teacher import TrainedTeacher
from pipeline.project.unfinished import pairs_there
from pipeline.runtime import paths
from pipeline.runtime.status import read_status

SKEW_S = 2.0
SHAPES = {"digits": [1, 8, 8], "cifar10": [3, 32, 32], "checkerboard": [2]}
"""Of sources whose samples have one shape only."""
FLOAT = 4


def check_space(params: Params) -> list[Finding]:
    """Room for the pairs, for checkpoints and for DVC's copies of results."""
    spec = sample_spec(params)
    if spec is None:
        return [warning("disk space", "unknown before prepare_data has run, since the shape of a "
                        "sample is", "run `dvc repro prepare_data`, then this again")]
    try:
        spec = learned(params, spec)
    except KDMError as error:
        return [warning("disk space", f"unknown: autoencoder.{error}", "")]
    pairs, training, results = pair_bytes(params, spec), 0, 0
    for model, config in models(params, spec):
        size = FLOAT * sum(parameter.numel() for parameter in model.parameters())
        training, results = training + training_bytes(config, size), results + size
    kept, copies = pairs + results, dvc_copies()
    needed, free = kept * (1 + copies) + training, shutil.disk_usage(".").free
    text = (f"up to {amount(needed)} needed (pairs {amount(pairs)}, checkpoints {amount(training)}"
            f"{f', copies in the cache of DVC {amount(kept)}' if copies else ''}), "
            f"{amount(free)} free")
    if not needed:
        return [ok("disk space", f"all results are there, {amount(free)} free")]
    if free < needed:
        return [problem("disk space", text, "make room, take fewer pairs, set pairs.location, or "
                        "let DVC link: dvc config cache.type hardlink,symlink")]
    return [ok("disk space", text)]


def sample_spec(params: Params) -> SampleSpec | None:
    """What a sample is; None where only the data tell, which are not prepared yet."""
    if (paths.DATASET / "dataset.json").is_file():
        return open_dataset(paths.DATASET)[0].info.samples
    source, resolution = params.data.source, getattr(params.data, "resolution", None)
    shape = SHAPES.get(source) or ([3, resolution, resolution] if resolution else None)
    if shape is None:
        return None
    return SampleSpec(kind="points" if len(shape) == 1 else "image", shape=shape)


def pair_bytes(params: Params, spec: SampleSpec) -> int:
    """What is still to be written of the pairs on this disk, before compression."""
    config = params.pairs
    if not isinstance(config, PairsConfig) or (
            config.location is not None and local_path(config.location) is None):
        return 0
    total = config.train + config.validation + config.test
    found = pairs_there(read_status(Path(), "sample_pairs"))
    done = found.done if found is not None and found.total == total else 0
    return stored_bytes(StoreSpec(
        samples=spec, teacher=None, noise_seed=0, noise=config.noise, noise_check="",
        noise_dtype=config.noise_dtype, noise_scale=1.0, sample_dtype=config.sample_dtype,
        solver=config.solver, times=[], nfe=None, compute_batch=config.batch, precision="fp32",
        splits={}, chunk=config.chunk, shard=config.shard,
        states=[KeptState(place=1, position=0.5, scale=1.0)] * config.states), total - done)


def models(params: Params, spec: SampleSpec) -> Iterator[tuple[nn.Module, TrainingConfig]]:
    """The networks that are trained and have no result yet, without their weights."""
    teacher = params.teacher
    with torch.device("meta"), suppress(ValueError, KDMError):  # `kdm params check` explains those
        if isinstance(teacher, TrainedTeacher) and not paths.TEACHER.exists():
            yield build_teacher(teacher.model, spec), teacher.training
            if teacher.guide is not None:
                yield build_teacher(teacher.guide.model, spec), teacher.guide.training
    for name, student in params.students.items():
        with torch.device("meta"), suppress(ValueError, KDMError):
            if not (paths.STUDENTS / name).exists():
                # The last phases' files are there as long as the last phase is trained.
                for phase in student.phases:
                    yield completed(params, student).build(spec), phase.training


def training_bytes(config: TrainingConfig, size: int) -> int:
    """What the checkpoints of a model take at most, given the bytes of its weights.

    Each has the weights, their average and Adam's two moments; one more is there while the oldest
    is replaced.
    """
    return size * 4 * (config.keep_checkpoints + 1)


def dvc_copies() -> int:
    """How many copies of a result DVC keeps beside it on this disk: one, or none where it links."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc_objects.fs import generic

    try:
        with Repo() as repo:
            cache: Any = repo.cache.local
            types = list(cache.cache_types)
            os.makedirs(cache.path, exist_ok=True)
            if os.stat(cache.path).st_dev != os.stat(".").st_dev and "symlink" not in types:
                return 0
            links = generic.test_links([kind for kind in types if kind != "copy"], cache.fs,
                                       cache.path, repo.fs, repo.root_dir)
            return 0 if links else 1
    except DvcException:
        return 1  # `check_remotes` says that there is no repository


def check_file_system() -> list[Finding]:
    """Locks, hard links and the clock of the disk on which `data` lies."""
    folder = Path("data")
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as place:
            file = Path(place) / "file"
            file.touch()
            skew = file.stat().st_mtime - time.time()
            return [check_locks(file), check_links(file), check_clock(skew)]
    except OSError as error:
        return [problem("file system", f"{folder} cannot be written ({error.strerror})",
                        "check the permissions and the free space")]


def check_locks(file: Path) -> Finding:
    """Two runs of a stage are kept apart by a lock."""
    with file.open() as first, file.open() as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return ok("locks", "files under data can be locked")
        except OSError as error:
            return problem("locks", f"files under data cannot be locked ({error.strerror})",
                           "use another disk, or mount this one with locks")
    return problem("locks", "a locked file under data can be locked again, so two runs at once "
                   "could spoil each other", "use another disk, or mount this one with locks")


def check_links(file: Path) -> Finding:
    """Growing a pair store takes over the old pairs as links."""
    try:
        file.with_name("link").hardlink_to(file)
    except OSError as error:
        return warning("hard links", f"there are none under data ({error.strerror}): more pairs "
                       "would be sampled from the first one", "use another disk for data")
    return ok("hard links", "files under data can have them")


def check_clock(skew: float) -> Finding:
    """The disk's clock against this machine's, and results that come from the future."""
    if abs(skew) > SKEW_S:
        return warning("clock", f"the disk's clock is {skew:+.0f} s from this machine's: DVC may "
                       "take changed files for unchanged ones", "let both follow the same clock")
    future = [file for file in paths.TIMINGS.glob("*.json")
              if file.stat().st_mtime > time.time() + SKEW_S]
    if future:
        return warning("clock", f"{future[0]} was written in the future: a clock was wrong, then "
                       "or now", "compare `date` with another machine")
    return ok("clock", "the disk's agrees with this machine's")


def amount(size: int) -> str:
    """Bytes in words."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
