"""Taking over the pairs of a smaller or larger store of the same stream."""

from collections.abc import Callable

import torch

from kdm_core.errors import DataError
from kdm_core.pairs.copying import may_link
from kdm_core.pairs.sampling import sample_shard
from kdm_core.pairs.store import PairStore
from kdm_core.teachers import Teacher


def adopt(
    store: PairStore, kept: PairStore, teacher: Teacher, device: torch.device,
    say: Callable[[str], None],
) -> int:
    """Take over all pairs of a kept store that a new one of the same stream misses.

    Whole shards become links where that is possible. The kept store may be unfinished. Its last
    shard may be a part of one here, whose other pairs are then sampled; and ours a part of one of
    the kept.

    Returns:
        The number of pairs that were taken over.
    """
    taken, link = 0, may_link(kept, store)
    for shard in store.missing_shards():
        rows = store.spec.shard_range(shard)
        known = range(rows.start, min(rows.stop, kept.spec.count))
        if not known:
            break
        if not kept.is_complete(shard):
            continue
        try:
            block = kept.read(known)
        except DataError as error:
            say(f"to be sampled again: {error}")
            continue
        if link and kept.spec.shard_range(shard) == rows:
            store.link_shard(kept, shard)
        elif known == rows:
            store.write_shard(shard, block)
        else:
            store.write_shard(shard, sample_shard(store.spec, teacher, shard, device, block)[0])
        taken += len(known)
    return taken
