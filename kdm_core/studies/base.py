"""What a study is given, and what it finds."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kdm_core.errors import DataError, DivergedError, KDMError
from kdm_core.samples import SOURCE_NAMES, SampleSpec, Source
from kdm_core.solvers import Solution
from kdm_core.students.hierarchical import Band

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Sample = Callable[[Tensor, Tensor], Tensor]
"""Samples (n, *shape) of unit-variance noise (n, *shape) and labels (n,)."""
SampleLatent = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Samples (n, *shape) of the latents (1 - w) E(start) + w E(end): of noises start and end
(n, *shape), weights w (n,) and labels (n,)."""
SampleSteps = Callable[[Tensor, Tensor, int], Tensor]
"""Samples (n, *shape) of noise (n, *shape) and labels (n,) in so many steps."""
SolveSteps = Callable[[Tensor, Tensor, int], Solution]
"""As `SampleSteps`, of a teacher's solver, with the evaluations that a sample took."""
SampleStates = Callable[[Tensor, Tensor, list[float]], Tensor]
"""States (n, k, *shape) of unit variance, of noise, labels and k positions."""
Edit = Callable[[Tensor, Tensor, Band, Tensor], Tensor]
"""Samples (n, *shape) of noise and labels whose modes in a band are those of other noise."""
Numbers = Mapping[str, float | int | str | list[Any]]


FUNCTIONS = {"sample_teacher": "the teacher", "sample_student": "{}",
             "sample_latent": "{}'s latents", "sample_steps": "{} in several steps",
             "sample_teacher_steps": "the teacher in fewer steps", "sample_states": "{}'s states",
             "edit": "{} with modes exchanged"}
"""The functions of a subject that make samples, and who that is, for messages."""


class Inapplicable(KDMError):
    """A study can say nothing of these samples, too few or all alike; it is left out."""


class Subject(NamedTuple):
    """A student and its teacher, and what both make of the same noise.

    All tensors are on the CPU, and so is what the functions take and give. Images are float in
    [-1, 1], of the 256 values that they have at rest; points are float32.

    Attributes:
        spec: what one sample is; latents that are decoded are images here, whose noise has another
            shape.
        label_names: the classes that both are conditioned on; empty if on none.
        noise: (n, …), of unit variance.
        labels: (n,) int64; -1 where there are no classes.
        teacher: samples (n, *shape), the teacher's or those of the pairs.
        student: samples (n, *shape) of the same noise in the same order.
        train_samples: the real training data (m, *shape), as at rest: uint8 images or float32.
        held_out_samples: real data (k, *shape) that no training has seen, as at rest.
        sample_teacher, sample_student: samples of other noise, however much at once.
        features: samples (n, *shape) → features (n, d); None where no extractor is at hand.
            Given all training data at once, so that a cache by content can answer.
        eigenvalues: (d,), complex, of the student's operator; None if it has none.
        seed: of whatever a study draws.
        name: the student's.
        sample_latent: samples of the student between two noises' latents, None if that is left
            out.
        source: "pairs" where nobody knows which teacher made them: then `sample_teacher` is not to
            be asked.
        real_data: whether the training and held-out samples are data, and not the teacher's own.
        shown_data: whether the student's losses took training samples as real.
        sample_steps: samples of the student in several steps, an evaluation each; None if it
            knows one step only.
        sample_teacher_steps: samples of the teacher by its own solver in so many steps; None if
            that solver chooses its steps itself.
        stored_states: (n, k, *shape), of unit variance, the states of the same noise that are
            kept with the pairs, noisiest first; None where none are.
        positions: (k,) of those states, as `kdm_core.pairs.spec.KeptState` says.
        sample_states: states of the student, decoded on the way of one noise's latents; None if
            these do not evolve in parts.
        states_trained: whether a loss of the student had it decode states between.
        edit: samples of the student whose modes in a band are exchanged; None if it has no modes.
    """

    spec: SampleSpec
    label_names: list[str]
    noise: Tensor
    labels: Tensor
    teacher: Tensor
    student: Tensor
    train_samples: NDArray[np.generic]
    held_out_samples: NDArray[np.generic]
    sample_teacher: Sample
    sample_student: Sample
    features: Callable[[Tensor], NDArray[np.float32]] | None
    eigenvalues: NDArray[np.complexfloating] | None
    seed: int
    name: str
    sample_latent: SampleLatent | None = None
    source: Source = "teacher"
    real_data: bool = True
    shown_data: bool = False
    sample_steps: SampleSteps | None = None
    sample_teacher_steps: SolveSteps | None = None
    stored_states: Tensor | None = None
    positions: Sequence[float] = ()
    sample_states: SampleStates | None = None
    states_trained: bool = False
    edit: Edit | None = None

    @property
    def beside(self) -> str:
        """What the student is looked at beside, in words."""
        return f"the {SOURCE_NAMES[self.source]}"

    @property
    def of_source(self) -> str:
        """Its genitive."""
        return f"{self.beside}’s" if self.source == "teacher" else f"{self.beside}’"


class Finding(NamedTuple):
    """One study's figure, in words and numbers, too.

    Attributes:
        name: the study's.
        title: a heading.
        alt: what is to be seen, for those who cannot see it.
        caption: what to look at, and what the numbers say.
        figure: drawn in the style of `kdm_core.figures.style`.
        numbers: what JSON can hold.
        warnings: what a reader must not miss, a line each.
    """

    name: str
    title: str
    alt: str
    caption: str
    figure: "Figure"
    numbers: Numbers
    warnings: Sequence[str] = ()


def spaces(subject: Subject) -> dict[str, Callable[[Tensor], NDArray[np.float32]]]:
    """How samples (n, *shape) are compared: as vectors (n, d) by the names of these spaces.

    "pixels" or "coordinates" are the values themselves; "features" are there if the subject has
    them.
    """
    own = "pixels" if subject.spec.kind == "image" else "coordinates"
    compared: dict[str, Callable[[Tensor], NDArray[np.float32]]] = {
        own: lambda samples: samples.flatten(1).numpy()}
    if subject.features is not None:
        compared["features"] = subject.features
    return compared


def mean_square(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The mean over all values of the squared difference of two arrays that broadcast."""
    return float(np.square(a - b).mean(dtype=np.float64))


def varied(labels: Tensor, n: int) -> NDArray[np.int64]:
    """The places of n samples (all, if there are fewer), the first of every label before others."""
    first = np.sort(np.unique(labels.numpy(), return_index=True)[1])
    return np.concatenate([first, np.setdiff1d(np.arange(len(labels)), first)])[:n]


def checked(subject: Subject) -> Subject:
    """The same subject, whose functions refuse to give samples that are not finite.

    Raises:
        DataError: there are no samples, or not as many of everything.
        DivergedError: samples are not finite.
    """
    expected = (len(subject.noise), *subject.spec.sample_shape)
    for what in ("teacher", "student"):
        found = tuple(getattr(subject, what).shape)
        if found != expected or not len(subject.noise):
            raise DataError(f"{subject.name}: a study needs noise and the samples of both models "
                            f"from it, {what} has shape {found} where {expected} is expected")
        _finite(getattr(subject, what), f"{subject.name}: {what}")
    _finite(subject.noise, f"{subject.name}: noise")
    if subject.stored_states is not None:
        kept = (expected[0], len(subject.positions), *expected[1:])
        if (found := tuple(subject.stored_states.shape)) != kept:
            raise DataError(f"{subject.name}: the states of all noises at all positions have shape "
                            f"{found} where {kept} is expected")
        _finite(subject.stored_states, f"{subject.name}: stored_states")
    refusing: dict[str, Any] = {
        function: _refusing(sample, who.format(subject.name))
        for function, who in FUNCTIONS.items()
        if (sample := getattr(subject, function)) is not None}
    return subject._replace(**refusing)


def _refusing(sample: Callable[..., Any], who: str) -> Callable[..., Any]:
    def finite(*given: Any) -> Any:
        made = sample(*given)
        _finite(made.state if isinstance(made, Solution) else made, f"{who} in a study")
        return made

    return finite


def _finite(samples: Tensor, what: str) -> Tensor:
    if not samples.isfinite().all():
        raise DivergedError(f"{what}: samples are not finite; the model diverged, train or sample "
                            "it again")
    return samples
