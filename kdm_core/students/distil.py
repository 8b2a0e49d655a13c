"""Distilling a pair store into a student: what its phases share, and what is kept of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from kdm_core.pairs.reading.batches import PairReader
from kdm_core.pairs.reading.order import pair_order
from kdm_core.pairs.reading.readers import open_reader
from kdm_core.pairs.reading.resident import ResidentReader
from kdm_core.pairs.reading.whole import read_split
from kdm_core.pairs.store import PairStore
from kdm_core.students.base import Student
from kdm_core.students.given import NOTHING, Given
from kdm_core.students.phases import Phase, Reports, fit_phases
from kdm_core.students.training import StudentTask
from kdm_core.training.loop import Record
from kdm_core.training.waiting import Waiting

Reading = Callable[[int], AbstractContextManager[Callable[[int], None]]]
"""A context in which so many pairs are read into memory, and who is told of each file's pairs."""


@contextmanager
def unseen(pairs: int) -> Iterator[Callable[[int], None]]:
    """Tells nobody."""
    yield lambda pairs: None


class Distillation:
    """A training on the pairs of a store that its mask keeps, in phases.

    Attributes:
        count: pairs that it reads.
        validation: the held-out ones, on the device.
        waiting: how long the device waited.
    """

    def __init__(
        self, store: PairStore, plan: Sequence[Phase], device: torch.device,
        seeds: Callable[[int], int], given: Given = NOTHING, window: int | None = None,
        reading: Reading = unseen,
    ) -> None:
        """
        Args:
            device: of this process.
            seeds: of a phase, numbered from 0.
            given: what the losses ask for besides pairs.
            window: pairs that are mixed at a time; None mixes all, on the device.
            reading: see there.

        Raises:
            DataError: there are no pairs for validation, or one is missing or damaged.
        """
        self.store, self.plan, self.device, self.seeds = store, plan, device, seeds
        self.given, self.window, self.reading = given, window, reading
        self.waiting = Waiting(device)
        self.validation = read_split(store, "validation", device)
        self.count = len(store.kept_rows("train"))
        self.reader: PairReader | None = None
        self.opened = ExitStack()

    def run(
        self, student: Student, checkpoint: Path, work_key: str, reports: Reports
    ) -> tuple[Student, Record]:
        """Train a student on the device through all phases; arguments and errors as of
        `fit_phases`."""
        with self.opened:
            return fit_phases(student, self.plan, self.task, checkpoint, work_key, reports,
                              self.waiting)

    def task(self, student: Student, phase: Phase, number: int) -> StudentTask:
        """The task of a phase, numbered from 0."""
        seed = self.seeds(number)
        self.reader = self.open(phase.training.batch, seed)
        return StudentTask(student, phase.losses, phase.training, self.reader, self.validation,
                           seed, self.given)

    def open(self, batch: int, seed: int) -> PairReader:
        """Batches for a phase."""
        if isinstance(self.reader, ResidentReader):  # which has all pairs
            return ResidentReader(self.reader.pairs, pair_order(
                self.store, "train", batch, seed, device=self.device))
        states = any(phase.losses.takes_states for phase in self.plan)
        with self.reading(self.count) as on_pairs:
            return self.opened.enter_context(open_reader(
                self.store, "train", batch, seed, self.device, self.window, states, on_pairs))

    def provenance(
        self, marks: Mapping[str, str], earlier: Sequence[Mapping[str, Any]] = ()
    ) -> dict[str, Any]:
        """What is kept with the student.

        Args:
            marks: fingerprints of what it was given besides pairs.
            earlier: the phases that it had before this training.
        """
        spec = self.store.spec
        law = {} if spec.label_weights is None else {"label_weights": spec.label_weights}
        phases = [{"losses": phase.losses.model_dump(), "training": phase.training.model_dump()}
                  for phase in self.plan]
        return {"pairs": spec.fingerprint, "pairs_read": self.count, "teacher": spec.teacher,
                **phases[0], "phases": [*earlier, *phases], **law, **marks}
