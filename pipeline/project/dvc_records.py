"""DVC's records, and what to do where they are cut.

DVC writes `dvc.lock` and `.dvc/tmp/rwlock` in place, and makes a folder in its cache of runs before
what is to lie in it. If it is killed in the moments in which it does, it refuses to run afterwards.
Nothing is lost by that: the results lie in the cache. Who reads beside a running DVC may find its
records cut for a moment as well, and looks again.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dvc.exceptions import DvcException
from dvc.repo import Repo

from pipeline.project.current import PipelineError, require_current_project

CUT_RWLOCK = "it is cut, since DVC was killed while it wrote it: remove it when no DVC runs"
CUT_LOCK = ("it is cut, since DVC was killed while it wrote it, or holds a conflict of a merge: "
            "remove it when no DVC runs, then run `dvc repro`, which takes the results from DVC's "
            "cache of runs")
CUT_RUN = ("DVC was killed while it noted a run, and cannot read the empty folder that it left: "
           "when no DVC runs, `find .dvc/cache/runs -type d -empty -delete`")
REMEDIES = {
    r"dvc\.lock' (validation failed|is invalid)|'dvc\.lock', YAML file structure is corrupted":
        CUT_LOCK,
    r"Unable to read RWLock-file '.*'. JSON structure is corrupted": CUT_RWLOCK,
    r"join\(\) argument must be .*, not 'NoneType'": CUT_RUN,
}
"""What to do, by what DVC says."""
AGAIN_S = 0.5

T = TypeVar("T")


class CutError(PipelineError):
    """One of DVC's records is cut."""


def look(root: Path, view: Callable[[Repo], T]) -> T:
    """What `view` finds in DVC's repository in `root`, with a pipeline in it.

    Raises:
        PipelineError: there is none, or DVC cannot read it.
    """
    require_current_project(root)

    def attempt() -> T:
        try:
            with Repo(str(root)) as repo:
                return view(repo)
        except DvcException as error:
            said = f"{root.absolute()}: {error}"
            advised = with_remedy(said)
            raise (PipelineError if advised == said else CutError)(advised) from error

    return settled(attempt, CutError)


def settled(read: Callable[[], T], cut: type[Exception]) -> T:
    """What reading a record of DVC's gives, the second time if it seems cut the first.

    Args:
        cut: raised where it is.
    """
    try:
        return read()
    except cut:
        time.sleep(AGAIN_S)
        return read()


def empty_runs(cache: Path) -> list[Path]:
    """The folders of a cache of runs in which DVC has not come to write anything."""
    return [folder for folder in cache.glob("*/*") if not any(folder.iterdir())]


def with_remedy(message: str) -> str:
    """What DVC said and, where it cannot read its own records, what to do."""
    for pattern, remedy in REMEDIES.items():
        if re.search(pattern, message):
            return f"{message}: {remedy}"
    return message
