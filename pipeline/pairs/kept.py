"""The last finished pair store, kept beside DVC, so that a larger one samples only the rest.

DVC removes a stage's outputs before it runs the stage. What is kept are hard links to the same
files, which take no space while the output is there. Where DVC has put copies of its own in the
output's place, the next stage links anew. The pairs' files are never changed in place, only
replaced, so neither store can spoil the other.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kdm_core.errors import KDMError
from kdm_core.pairs.location import local_path
from kdm_core.pairs.store import PairStore
from pipeline.runtime import paths

KEPT = paths.WORK / "kept_pairs"


def keep(store: Path, name: str, say: Callable[[str], None]) -> None:
    """Keep a finished store under a name, in place of all that was kept before.

    Where the disk has no hard links nothing is kept. A kill at any instant leaves the new one, the
    old one or none.
    """
    temporary = KEPT / ".new"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(store, temporary, copy_function=os.link)
    except (OSError, shutil.Error) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        say(f"hard links are impossible here ({error}): more pairs will be sampled from the "
            "first one")
        return
    for old in KEPT.iterdir():
        if old != temporary:
            shutil.rmtree(old)
    temporary.rename(KEPT / name)


def link_anew(store: PairStore, say: Callable[[str], None]) -> None:
    """Make the files that are kept of a finished store links to those that lie there now.

    Pairs to which the project only has a reference are left alone.
    """
    path = local_path(store.location)
    if store.expected_content is not None or path is None:
        return
    for folder in KEPT.glob("[!.]*"):
        with suppress(KDMError):  # what cannot be read is said when it is needed
            kept = PairStore.open(folder)
            if (kept.provenance, kept.spec) == (store.provenance, store.spec):
                keep(path, folder.name, say)
