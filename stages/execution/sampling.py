"""Pairs as a task: each item is a shard, which the worker samples and writes into the store."""

from pathlib import Path
from typing import NamedTuple

import torch

from kdm_core.errors import MismatchError
from kdm_core.pairs.claims import try_claim
from kdm_core.pairs.location import local_path
from kdm_core.pairs.sampling import sample_shard
from kdm_core.pairs.store import PairStore
from kdm_core.teachers import Teacher, load_sampled
from stages.execution.tasks import Folder, Work, absolute


class Sampled(NamedTuple):
    """What became of a shard.

    Attributes:
        complete: False if another process is writing it.
        nfe: evaluations a pair; None if it was not sampled here.
    """

    complete: bool
    nfe: float | None


class SamplingTask(NamedTuple):
    """Filling a store.

    Attributes:
        store: its location.
        teacher: the folder of the teacher.
        trust_code: whether a user's module may be imported.
    """

    store: str
    teacher: Folder
    trust_code: bool

    @property
    def written(self) -> Path | None:
        return local_path(self.store)

    def packed(self) -> "SamplingTask":
        return self._replace(store=absolute(self.store), teacher=self.teacher.packed())

    def start(self, device: torch.device) -> Work:
        store = PairStore.open(self.store, writable=True)
        spec = store.spec
        with self.teacher.at_hand() as folder:
            teacher, mark, guide = load_sampled(folder, spec.guidance, self.trust_code)
        if (mark, guide) != (spec.teacher, spec.guide):
            raise MismatchError(f"{self.teacher.path} has changed since {self.store} was begun: "
                                "run the stages again")
        return sampler(store, teacher.to(device), device)


def sampler(store: PairStore, teacher: Teacher, device: torch.device) -> Work:
    """A function that samples and writes a shard, unless it is there or another process is at it.
    """

    def sample(shard: int) -> Sampled:
        with try_claim(store.location, shard) as ours:
            if store.is_complete(shard):
                return Sampled(True, None)
            if not ours:
                return Sampled(False, None)
            block, nfe = sample_shard(store.spec, teacher, shard, device)
            store.write_shard(shard, block, claimed=True)
        return Sampled(True, nfe)

    return sample
