"""The last finished pair store, kept beside DVC, so that a larger one samples only the rest.

DVC removes a stage's outputs before it runs the stage. What is kept are hard links to the same
files, which take no space while the output is there. The pairs' files are never changed in place,
only replaced, so neither store can spoil the other.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from kdm_core.errors import DataError, KDMError
from kdm_core.pairs.sampling import sample_shard
from kdm_core.pairs.store import PairStore
from kdm_core.teachers import Teacher
from stages import paths

KEPT = paths.WORK / "kept_pairs"


def keep(store: Path, key: str, say: Callable[[str], None]) -> None:
    """Keep a finished store under a key, in place of all that was kept before.

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
    temporary.rename(KEPT / key)


def find_kept(key: str, stream: str, say: Callable[[str], None]) -> PairStore | None:
    """The kept store of a stream, if there is one and it can be read."""
    path = KEPT / key
    if not path.exists():
        return None
    try:
        kept = PairStore.open(path)
    except KDMError as error:
        say(f"the pairs that were kept cannot be used: {error}")
        return None
    return kept if kept.spec.stream == stream else None


def adopt(
    store: PairStore, kept: PairStore, teacher: Teacher, device: torch.device,
    say: Callable[[str], None],
) -> int:
    """Take over all pairs of a kept store that a new one of the same stream misses.

    Whole shards become links. The kept store's last shard may be a part of one here, whose other
    pairs are then sampled; and ours a part of one of the kept.

    Returns:
        The number of pairs that were taken over.
    """
    taken = 0
    for shard in store.missing_shards():
        rows = store.spec.shard_range(shard)
        known = range(rows.start, min(rows.stop, kept.spec.count))
        if not known:
            break
        try:
            block = kept.read(known)
        except DataError as error:
            say(f"to be sampled again: {error}")
            continue
        if kept.spec.shard_range(shard) == rows:
            store.link_shard(kept, shard)
        elif known == rows:
            store.write_shard(shard, block)
        else:
            store.write_shard(shard, sample_shard(store.spec, teacher, shard, device, block)[0])
        taken += len(known)
    return taken
