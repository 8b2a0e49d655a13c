"""Pairs as a task: each item is a shard, which the worker samples and writes into the store."""

from pathlib import Path
from typing import NamedTuple

import torch

from kdm_core.errors import MismatchError, placed
from kdm_core.pairs.location import local_path
from kdm_core.pairs.sampling import sampler
from kdm_core.pairs.store import PairStore
from kdm_core.teachers import load_sampled
from pipeline.workers.tasks import Folder, Work, absolute


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
        with self.teacher.at_hand() as folder, placed("teacher"):
            teacher, mark, guide = load_sampled(folder, spec.guidance, self.trust_code,
                                                done=True)
        if (mark, guide) != (spec.teacher, spec.guide):
            raise MismatchError(f"{self.teacher.path} has changed since {self.store} was begun: "
                                "run the stages again")
        return placed("pairs")(sampler(store, teacher.to(device), device))
