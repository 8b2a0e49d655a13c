"""Check of the data, and of all that must suit them: what prepare_data and later stages find."""

import tarfile
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from kdm_core.datasets import (
    CLASSES,
    CheckerboardConfig,
    Cifar10Config,
    DatasetInfo,
    DigitsConfig,
    FolderConfig,
    IdxConfig,
    NoDataConfig,
    NpzConfig,
    load_dataset,
)
from kdm_core.datasets.cifar10 import TEST, TRAIN
from kdm_core.datasets.images import SUFFIXES
from kdm_core.datasets.listing import is_left_behind
from kdm_core.errors import DataError, KDMError, placed
from kdm_core.metrics.extractors import ExtractorConfig, ReferenceConfig
from kdm_core.metrics.extractors.inception import Inception, InceptionConfig
from kdm_core.metrics.extractors.vgg16 import VGG16, VGG16Config
from kdm_core.metrics.frechet import read_statistics
from kdm_core.pairs.location import local_path
from kdm_core.pairs.store import PairStore
from kdm_core.samples import SampleSpec
from kdm_core.sharing.hub import from_pretrained
from kdm_core.students.initialise import other_fields
from pipeline.kdm.checks.finding import Finding, ok, problem, warning
from pipeline.kdm.checks.inputs import sources
from pipeline.params.fitting import check_rules, check_stored, check_teacher, problems_with
from pipeline.params.pairs import StoredPairs
from pipeline.params.run import Params

SECONDS_OF_FILES = 1000
"""Images that are read in a second or a few."""
SECONDS_OF_BYTES = {"npz": 2**30, "edm_zip": 2**28}


def check_fit(params: Params) -> list[Finding]:
    """Whether the data can be read, and models, importers, extractors and rules suit them.

    Nothing is downloaded. Code of the user's is run only where the parameters say that it is
    trusted. Missing files are for `check_sources` to name.
    """
    absent = {name for name, path in sources(params) if path is None or not path.exists()}
    if isinstance(params.data, NoDataConfig) and "pairs.location" in absent:
        return []
    if "data.path" in absent and not isinstance(params.data, Cifar10Config):
        return []
    try:
        with placed("data"):
            info = look(params)
    except KDMError as error:
        return [problem("data", str(error), "")]
    if info is None:
        return [warning("data", "so much takes more than seconds to read: whether models suit it "
                        "is not known", "`dvc repro prepare_data` looks at it")]
    found = [problem("parameters", text, "")
             for text in problems_with(params, info.samples, info)]
    found += check_statistics(params, absent)
    found += check_starts(params, absent)
    later = []
    parts: dict[str, Callable[[SampleSpec], None]] = {
        "filter.rules": partial(check_rules, params),
        "teacher": partial(check_teacher, params),
        "pairs.location": partial(check_pairs_there, params)}
    for part, check in parts.items():
        if any(name.startswith(part) for name in absent) or (
                part == "teacher" and not is_local(params)):
            later.append(part)
            continue
        try:
            check(info.samples)
        except KDMError as error:
            found.append(problem(part, str(error), ""))
    shape = "×".join(map(str, info.samples.shape))
    return found or [ok("fit", f"all suits {info.samples.kind} samples of {shape}"
                        f"{'; not looked at: ' if later else ''}{', '.join(later)}")]


def check_statistics(params: Params, absent: set[str]) -> list[Finding]:
    """Whether published statistics can be read, and are of their extractors' features."""
    found = []
    for config in params.evaluation.extractors:
        where = f"evaluation.statistics.{config.name}"
        if config.name not in params.evaluation.statistics or where in absent:
            continue
        path = params.evaluation.statistics[config.name]
        try:
            size = len(read_statistics(Path(path)).mean)
        except KDMError as error:
            found.append(problem(where, str(error), ""))
            continue
        if size != (expected := dimensions(config, params) or size):
            found.append(problem(where, f"{path} is of {size} dimensions, the extractor's features "
                                 f"have {expected}", "give statistics of its own features"))
    return found


def check_starts(params: Params, absent: set[str]) -> list[Finding]:
    """Whether students that others start at, and which are on this machine, are of the same
    architecture."""
    found = []
    for name, student in params.students.items():
        where = f"students.{name}.init"
        start = student.starts_at
        if start is None or where in absent or not Path(start).is_dir():
            continue
        try:
            other = from_pretrained(start).config
        except KDMError as error:
            found.append(problem(where, str(error), ""))
            continue
        if differing := other_fields(student.model, other):
            found.append(problem(where, f"{start} is a student of another architecture "
                                 f"(model.{', model.'.join(differing)})",
                                 "take over its model, or start at random"))
    return found


def dimensions(config: ExtractorConfig, params: Params) -> int | None:
    """Of an extractor's features, where that is known without its weights."""
    if isinstance(config, ReferenceConfig):
        classifier = params.reference.classifier
        return None if classifier is None else classifier.model.features
    if isinstance(config, VGG16Config):
        return VGG16.dim
    return Inception.dim if isinstance(config, InceptionConfig) else None


def is_local(params: Params) -> bool:
    """Whether the teacher is on this machine, if it is one of others."""
    folder = getattr(params.teacher, "folder", None)
    return folder is None or Path(folder).exists()


def check_pairs_there(params: Params, spec: SampleSpec) -> None:
    """Whether pairs that are taken over, if they are on this machine, are of such samples, and
    suffice.

    Raises:
        KDMError: they are not, or do not.
    """
    if isinstance(params.pairs, StoredPairs):
        path = local_path(params.pairs.location)
        if path is not None:
            check_stored(params, PairStore.open(path).spec, spec)


def look(params: Params) -> DatasetInfo | None:
    """What the data are, None where it takes more than seconds to tell.

    As prepare_data reads them. Of a folder of many images the first of every class are looked at.

    Raises:
        DataError: they cannot be read or used.
    """
    config = params.data
    if isinstance(config, NoDataConfig):
        assert isinstance(params.pairs, StoredPairs), "the parameters are checked for that"
        store = PairStore.open(params.pairs.location).spec
        return DatasetInfo(source=config.source, samples=store.samples,
                           class_names=store.samples.label_names, train=store.splits["train"],
                           test=store.splits["validation"])
    if isinstance(config, CheckerboardConfig):
        return DatasetInfo(source=config.source, samples=SampleSpec(kind="points", shape=[2]),
                           class_names=[], train=config.train, test=config.test)
    if isinstance(config, Cifar10Config):
        require_batches(Path(config.path))
        spec = SampleSpec(kind="image", shape=[3, 32, 32],
                          label_names=CLASSES if config.conditional else [])
        return DatasetInfo(source=config.source, samples=spec, class_names=CLASSES,
                           train=50_000, test=10_000)
    if isinstance(config, FolderConfig) and Path(config.path).is_dir():
        with tempfile.TemporaryDirectory() as folder:
            excerpt = Path(folder)
            if link_first(Path(config.path), excerpt):
                whole = config.model_copy(update={"path": folder})
                try:
                    return load_dataset(whole, params.seed).info
                except KDMError as error:
                    raise type(error)(str(error).replace(folder, config.path)) from error
    elif not isinstance(config, DigitsConfig | IdxConfig):
        kind = "npz" if isinstance(config, NpzConfig) else "edm_zip"
        if Path(config.path).stat().st_size > SECONDS_OF_BYTES[kind]:
            return None
    return load_dataset(config, params.seed).info


def require_batches(path: Path) -> None:
    """Make sure that the six files of CIFAR-10, if something is there, might be.

    Raises:
        DataError: they are not.
    """
    if path.is_dir():
        if missing := [name for name in (*TRAIN, TEST) if not (path / name).is_file()]:
            raise DataError(f"{path / missing[0]} is missing or not a file: supply it")
    elif path.exists() and not tarfile.is_tarfile(path):
        raise DataError(f"{path} is not a readable .tar.gz: fetch it again")


def link_first(folder: Path, excerpt: Path) -> bool:
    """Make links to the first images of a folder, and of those in it, if there are many.

    Returns:
        Whether there are many.
    """
    groups = {path: sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES
                           and not is_left_behind(file.name))
              for path in (folder, *(one for one in folder.iterdir() if one.is_dir()))
              if path == folder or not is_left_behind(path.name)}
    if sum(map(len, groups.values())) <= SECONDS_OF_FILES:
        return False
    share = max(2, SECONDS_OF_FILES // len(groups))
    for path, files in groups.items():
        target = excerpt / path.relative_to(folder)
        target.mkdir(exist_ok=True)
        for file in files[:share]:
            (target / file.name).symlink_to(file.resolve())
    return True
