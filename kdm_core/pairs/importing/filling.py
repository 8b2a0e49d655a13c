"""Filling a store with pairs of others."""

from collections.abc import Callable

import numpy as np
import torch

from kdm_core.datasets.base import absent, have
from kdm_core.errors import MismatchError, adapted
from kdm_core.pairs.importing.converting import convert
from kdm_core.pairs.importing.plan import ImportPlan, KnownTeacher
from kdm_core.pairs.importing.source import PairSource
from kdm_core.pairs.opening import require_space
from kdm_core.pairs.sampling import join_blocks
from kdm_core.pairs.store import PairStore
from kdm_core.values import as_float

COMPARED = 8
PIECE = 500


def import_pairs(
    source: PairSource, store: PairStore, scale: float,
    on_pairs: Callable[[int], None] = lambda pairs: None,
) -> None:
    """Fill the shards that a store still misses.

    Args:
        source: the pairs.
        store: planned for them.
        scale: what the noise is divided by.
        on_pairs: is told the pairs of each shard that is written.

    Raises:
        DataError: a pair cannot be used, or not be written. Complete shards are kept.
    """
    store.remove_leftovers()
    missing = store.missing_shards()
    require_space(store, sum(len(store.spec.shard_range(shard)) for shard in missing))
    for shard in missing:
        rows = store.spec.shard_range(shard)
        # In pieces, since pairs may take several times the memory before they are converted.
        pieces = [convert(source, store.spec, scale,
                          np.arange(start, min(start + PIECE, rows.stop)))
                  for start in range(rows.start, rows.stop, PIECE)]
        store.write_shard(shard, join_blocks(pieces, len(rows)))
        on_pairs(len(rows))


def say_missing_classes(store: PairStore, labels_known: bool = True) -> None:
    """Say which classes of the training pairs the test pairs lack.

    Splits are cut from the front, so files whose names begin with their class make such splits.

    Args:
        store: a complete one.
        labels_known: whether the labels were when it was planned, which then told of classes
            without training pairs.
    """
    spec = store.spec
    train, test = (np.unique(store.read_arrays(spec.split_range(split), ["label"])["label"])
                   for split in ("train", "test"))
    names = spec.samples.label_names
    if not labels_known and (untrained := absent(train, names)):
        adapted(f"{have(untrained, names)} no training pairs: a student will not know "
                f"{'it' if len(untrained) == 1 else 'them'}")
    if missing := [spec.samples.label_names[label] for label in np.setdiff1d(train, test)
                   if label >= 0]:
        adapted(f"{len(missing)} of {spec.samples.num_classes} classes have no test pairs ("
                f"{', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}): the first pairs in "
                "the order of their names are those for testing; raise --test, or give names that "
                "do not begin with the class")


def compare_with_teacher(
    source: PairSource, plan: ImportPlan, teacher: KnownTeacher, device: torch.device
) -> float:
    """Let the teacher make the first pairs again.

    Returns:
        The root mean square of the differences.

    Raises:
        MismatchError: its samples are as different as those of other pairs.
    """
    spec = plan.spec
    block = convert(source, spec, plan.scale, np.arange(min(COMPARED, spec.count)))
    noise = torch.from_numpy(block.noise.astype(np.float32)).to(device)
    labels = spec.samples.told(torch.from_numpy(block.label).to(device))
    found = teacher.model.to(device).sample(noise, labels, spec.known_solver, spec.precision)
    made, given = found.state.cpu(), as_float(block.sample)
    if spec.samples.kind == "image":
        made = made.clamp(-1, 1)
    own, others = ((made - those).square().mean().sqrt() for those in (given, given.roll(1, 0)))
    if not own < 0.5 * others:
        raise MismatchError(f"--teacher: solved by --solver and --steps it makes samples that "
                            f"differ from the pairs' by {own:.3g} (root mean square), from other "
                            f"pairs' by {others:.3g}: it is not the teacher of these pairs, or was "
                            "solved or guided otherwise")
    return float(own)
