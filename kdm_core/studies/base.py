"""What a study is given, and what it finds."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kdm_core.errors import DataError, DivergedError, KDMError
from kdm_core.samples import SOURCE_NAMES, SampleSpec, Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Sample = Callable[[Tensor, Tensor], Tensor]
"""Samples (n, *shape) of unit-variance noise (n, *shape) and labels (n,)."""
SampleLatent = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Samples (n, *shape) of the latents (1 - w) E(start) + w E(end): of noises start and end
(n, *shape), weights w (n,) and labels (n,)."""
Numbers = Mapping[str, float | int | str | list[Any]]


class Inapplicable(KDMError):
    """A study can say nothing of these samples, too few or all alike; it is left out."""


class Subject(NamedTuple):
    """A student and its teacher, and what both make of the same noise.

    All tensors are on the CPU, and so is what the functions take and give. Images are float in
    [-1, 1], of the 256 values that they have at rest; points are float32.

    Attributes:
        spec: what one sample is.
        label_names: the classes that both are conditioned on; empty if on none.
        noise: (n, *shape), of unit variance.
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
        shown_data: whether the student's losses took training samples as real.
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
    shown_data: bool = False

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
    for what in ("noise", "teacher", "student"):
        found = tuple(getattr(subject, what).shape)
        if found != expected or not len(subject.noise):
            raise DataError(f"{subject.name}: a study needs noise and the samples of both models "
                            f"from it, {what} has shape {found} where {expected} is expected")
        _finite(getattr(subject, what), f"{subject.name}: {what}")
    latent = subject.sample_latent
    return subject._replace(
        sample_teacher=_refusing(subject.sample_teacher, "the teacher"),
        sample_student=_refusing(subject.sample_student, subject.name),
        sample_latent=None if latent is None else _refusing(latent, f"{subject.name}'s latents"))


def _refusing(sample: Callable[..., Tensor], who: str) -> Callable[..., Tensor]:
    def finite(*given: Tensor) -> Tensor:
        return _finite(sample(*given), f"{who} in a study")

    return finite


def _finite(samples: Tensor, what: str) -> Tensor:
    if not samples.isfinite().all():
        raise DivergedError(f"{what}: samples are not finite; the model diverged, train or sample "
                            "it again")
    return samples
