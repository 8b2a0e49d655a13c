"""Studies of a student beside its teacher: the paper's analyses, for any teacher and student."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from kdm_core.config import Config
from kdm_core.errors import adapted, placed
from kdm_core.studies import (
    grids,
    interpolation,
    memorisation,
    modes,
    outliers,
    path,
    semantics,
    spectrum,
    steps,
    vicinity,
)
from kdm_core.studies.base import Finding, Inapplicable, Subject, checked
from kdm_core.studies.grids import GridsConfig
from kdm_core.studies.interpolation import InterpolationConfig
from kdm_core.studies.memorisation import MemorisationConfig
from kdm_core.studies.modes import ModesConfig
from kdm_core.studies.outliers import OutliersConfig
from kdm_core.studies.path import PathConfig
from kdm_core.studies.semantics import SemanticsConfig
from kdm_core.studies.spectrum import SpectrumConfig
from kdm_core.studies.steps import StepsConfig
from kdm_core.studies.vicinity import VicinityConfig

__all__ = ["Finding", "StudiesConfig", "Subject", "run_studies"]


class StudiesConfig(Config):
    """The studies that are made, each where it says something about data and student; None: not.

    Attributes:
        grids: images of both models from the same noise.
        semantics: clusters of samples, looked for in the noise.
        vicinity: neighbours of a few noises.
        interpolation: walks between two noises.
        outliers: points off the support, traced back to the noise.
        steps: quality against network evaluations, of students that sample in several steps.
        path: decodings between noise and sample, of students whose latents evolve in parts.
        modes: what slow, fast and rotating modes carry, of students that have modes.
        spectrum: the operator's eigenvalues.
        memorisation: images near to training images.
    """

    grids: GridsConfig | None = GridsConfig()
    semantics: SemanticsConfig | None = SemanticsConfig()
    vicinity: VicinityConfig | None = VicinityConfig()
    interpolation: InterpolationConfig | None = InterpolationConfig()
    outliers: OutliersConfig | None = OutliersConfig()
    steps: StepsConfig | None = StepsConfig()
    path: PathConfig | None = PathConfig()
    modes: ModesConfig | None = ModesConfig()
    spectrum: SpectrumConfig | None = SpectrumConfig()
    memorisation: MemorisationConfig | None = MemorisationConfig()


class Study(NamedTuple):
    """A study, and of what it can be made.

    Attributes:
        kinds: of data that it is for.
        asks_teacher: whether it samples the teacher anew.
        asks_data: whether it looks at real samples.
        needs: what a student must be able to do: the field of `Subject` that is not None then.
    """

    run: Callable[[Subject, Any], Finding]
    kinds: tuple[str, ...] = ("image", "points")
    asks_teacher: bool = False
    asks_data: bool = False
    needs: str | None = None

    def applies(self, subject: Subject) -> bool:
        """Whether it is for data and students of this kind."""
        able = self.needs is None or getattr(subject, self.needs) is not None
        return able and subject.spec.kind in self.kinds


STUDIES = {
    "grids": Study(grids.grids, ("image",)),
    "semantics": Study(semantics.semantics),
    "vicinity": Study(vicinity.vicinity, asks_teacher=True),
    "interpolation": Study(interpolation.interpolation, asks_teacher=True),
    "outliers": Study(outliers.outliers, ("points",), asks_data=True),
    "steps": Study(steps.steps, asks_teacher=True, needs="sample_steps"),
    "path": Study(path.path, needs="sample_states"),
    "modes": Study(modes.modes, needs="edit"),
    "spectrum": Study(spectrum.spectrum, ("image", "latent", "points")),
    "memorisation": Study(memorisation.memorisation, ("image",), asks_data=True),
}
"""In the order in which they are shown."""


def run_studies(
    subject: Subject, config: StudiesConfig, say: Callable[[str], None]
) -> Iterator[Finding]:
    """What the studies find that are asked for and apply to data and student, one by one.

    One that can say nothing of these samples is left out, as `adapted` says.

    Args:
        say: is told which study begins.

    Raises:
        DataError, DivergedError: the subject's samples are not such.
    """
    subject = checked(subject)
    for name, study in STUDIES.items():
        settings = getattr(config, name)
        if settings is None or not study.applies(subject):
            continue
        if study.asks_teacher and subject.source == "pairs":
            adapted("it samples the teacher, which is not at hand or not known; it was left out",
                    field=name)
            continue
        if study.asks_data and not subject.real_data:
            adapted("it looks at real samples, of which there are none; it was left out",
                    field=name)
            continue
        say(f"study: {name}")
        try:
            with placed(name):
                finding = study.run(subject, settings)
        except Inapplicable as error:
            adapted(f"{error}; it was left out")
        else:
            yield finding
