"""The teacher and one student of a run, side by side, for the stages that compare them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from kdm_core.classes import require_order
from kdm_core.compute import autocast
from kdm_core.errors import DivergedError, placed
from kdm_core.pairs.reading.whole import Pairs, read_split
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import PairStore
from kdm_core.samples import Source
from kdm_core.sharing.folder import load_student
from kdm_core.solvers import Solution
from kdm_core.students.base import Student
from kdm_core.teachers import Teacher, load_sampled
from kdm_core.values import as_stored, from_uint8, to_uint8
from pipeline.params.teacher import NoTeacher
from pipeline.runtime import paths
from pipeline.runtime.latents import Pictures
from pipeline.runtime.runner import Stage

if TYPE_CHECKING:
    from kdm_core.students.hierarchical import Band


class Models(NamedTuple):
    """Both models on the stage's device, and the unseen pairs.

    Attributes:
        teacher: None where there is none.
        store: which the student was distilled from; it says how the teacher samples.
        test: the split that no training has seen.
        pictures: makes images of samples, which they may be themselves.
        source: whose samples the student's are measured beside.
        teacher_mark, student_mark: fingerprints.
    """

    teacher: Teacher | None
    student: Student
    store: StoreSpec
    test: Pairs
    pictures: Pictures
    source: Source
    teacher_mark: str | None
    student_mark: str

    @property
    def known_teacher(self) -> Teacher:
        """The teacher, for those who ask only where `source` says that it is known."""
        assert self.teacher is not None
        return self.teacher

    def sample_teacher(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Samples (n, *shape) on the CPU of noise (n, *shape), as the pairs were made."""
        solver, precision, told = self.store.known_solver, self.store.precision, self.told
        teacher = self.known_teacher
        return self._in_batches(
            lambda x, y: teacher.sample(x, told(y), solver, precision).state, noise, labels)

    def sample_student(self, noise: Tensor, labels: Tensor) -> Tensor:
        """As `sample_teacher`, in one evaluation."""
        return self.sample_steps(noise, labels, 1)

    def sample_steps(self, noise: Tensor, labels: Tensor, steps: int) -> Tensor:
        """As `sample_student`, in several steps."""
        precision, told = self.store.precision, self.told
        return self._in_batches(
            lambda x, y: self.student.generate(x, told(y), precision, steps), noise, labels)

    def sample_teacher_steps(self, noise: Tensor, labels: Tensor, steps: int) -> Solution:
        """As `sample_teacher`, in another number of steps, and the evaluations that they took."""
        precision, told, nfe = self.store.precision, self.told, 0
        solver = self.store.known_solver.model_copy(update={"steps": steps})
        teacher = self.known_teacher
        times = teacher.times(solver)

        def sample(noise: Tensor, labels: Tensor) -> Tensor:
            nonlocal nfe
            found = teacher.sample(noise, told(labels), solver, precision, times=times)
            nfe = found.nfe
            return found.state

        return Solution(self._in_batches(sample, noise, labels), nfe)

    @torch.inference_mode()
    def sample_latent(
        self, start: Tensor, end: Tensor, weights: Tensor, labels: Tensor
    ) -> Tensor:
        """The student's samples of the latents (1 - w) E(start) + w E(end).

        Args:
            start, end: noises (n, *shape).
            weights: w (n,).
            labels: (n,).
        """
        student = self.student

        def sample(start: Tensor, end: Tensor, weights: Tensor, labels: Tensor) -> Tensor:
            return student.between(start, end, weights, self.told(labels))

        return self._in_batches(sample, start, end, weights, labels)

    def sample_states(self, noise: Tensor, labels: Tensor, positions: list[float]) -> Tensor:
        """The student's states (n, k, *shape), of unit variance, of noise at k positions."""

        def sample(noise: Tensor, labels: Tensor) -> Tensor:
            with autocast(self.store.precision, noise.device):
                return self.student.states(noise, positions, self.told(labels))

        return self._joined(sample, noise, labels)

    def edit(self, noise: Tensor, labels: Tensor, band: "Band", other: Tensor) -> Tensor:
        """The student's samples of noise whose modes in a band are another noise's."""

        def sample(noise: Tensor, labels: Tensor, other: Tensor) -> Tensor:
            with autocast(self.store.precision, noise.device):
                return self.student.edit(noise, band, self.told(labels), other)

        return self._in_batches(sample, noise, labels, other)

    def told(self, labels: Tensor) -> Tensor | None:
        """As of the samples' specification."""
        return self.store.samples.told(labels)

    def _in_batches(self, sample: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Samples as they are at rest."""
        return as_at_rest(self._joined(sample, *inputs), self.store)

    def _joined(self, sample: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Batches as those of the pairs, so that rounding is theirs, too."""
        device = next(self.student.parameters()).device
        batches = zip(*(torch.split(x, self.store.compute_batch) for x in inputs), strict=True)
        return torch.cat([sample(*(x.to(device) for x in batch)).cpu() for batch in batches])


def open_models(stage: Stage, name: str, states: bool = False) -> Models:
    """Load what the earlier stages left.

    Args:
        states: also those between noise and sample, if the pairs have any.

    Raises:
        KDMError: something is missing or damaged, or not of one run.
    """
    student, student_mark = load_student(paths.STUDENTS / name)
    store = PairStore.open(paths.PAIRS)
    teacher, teacher_mark = None, None
    if not isinstance(stage.params.teacher, NoTeacher):
        with placed("teacher"):
            teacher, teacher_mark, _ = load_sampled(paths.TEACHER, store.spec.guidance,
                                                    stage.params.trusts_code, done=True)
        teacher.to(stage.device)
    require_order(student.spec.label_names, store.spec.samples.label_names,
                  str(paths.STUDENTS / name), str(paths.PAIRS))
    test = read_split(store, "test", torch.device("cpu"), states)
    pictures = Pictures(stage.params, store.spec.samples, stage.device)
    return Models(teacher, student.to(stage.device), store.spec, test, pictures,
                  stage.params.source(store.spec), teacher_mark, student_mark)


def as_at_rest(samples: Tensor, spec: StoreSpec) -> Tensor:
    """Samples as a file has them, as floats: images of 256 levels, latents in half precision.

    Raises:
        DivergedError: there are values that are not finite, which a file cannot have.
    """
    if broken := int((~torch.isfinite(samples)).flatten(1).any(dim=1).sum()):
        raise DivergedError(f"{broken} of {len(samples)} samples have values that are not finite: "
                            "the model is damaged or diverged in training; train it again")
    if spec.samples.bounded:
        return from_uint8(to_uint8(samples))
    return as_stored(samples, spec.sample_dtype).to(torch.float32)
