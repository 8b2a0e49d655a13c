"""DVC's records, `dvc.lock` and `.dvc/tmp/rwlock`, and what to do where they are cut.

DVC writes both in place. If it is killed in the moments in which it does, they stay cut, and it
refuses to run. Nothing is lost by that: the results lie in its cache of runs.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo

from kdm_core.errors import KDMError

CUT_RWLOCK = "it is cut, since DVC was killed while it wrote it: remove it when no DVC runs"
CUT_LOCK = ("it is cut, since DVC was killed while it wrote it, or holds a conflict of a merge: "
            "remove it and run `dvc repro`, which takes the results from DVC's cache of runs")
REMEDIES = {
    r"dvc\.lock' (validation failed|is invalid)|'dvc\.lock', YAML file structure is corrupted":
        CUT_LOCK,
    r"Unable to read RWLock-file '.*'. JSON structure is corrupted": CUT_RWLOCK,
}
"""What to do, by what DVC says."""


class PipelineError(KDMError):
    """The folder has no pipeline that DVC can read."""


def require_pipeline(root: Path) -> None:
    """Make sure that there is a pipeline.

    Raises:
        PipelineError: there is none.
    """
    if not (root / "dvc.yaml").is_file():
        raise PipelineError(f"{(root / 'dvc.yaml').absolute()} is missing: run this in the "
                            "project's folder")
    if not (root / ".dvc").is_dir():
        raise PipelineError(f"{root.absolute()} is no DVC repository: run `dvc init` there")


@contextmanager
def open_repository(root: Path) -> Iterator[Repo]:
    """DVC's repository in `root`, with a pipeline in it.

    Raises:
        PipelineError: there is none, or DVC cannot read it.
    """
    require_pipeline(root)
    try:
        with Repo(str(root)) as repo:
            yield repo
    except DvcException as error:
        raise PipelineError(with_remedy(f"{root.absolute()}: {error}")) from error


def with_remedy(message: str) -> str:
    """What DVC said and, where it cannot read its own records, what to do."""
    for pattern, remedy in REMEDIES.items():
        if re.search(pattern, message):
            return f"{message}: {remedy}"
    return message
