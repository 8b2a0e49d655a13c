"""Teachers: trained diffusion and flow-matching models with a probability-flow ODE."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from kdm_core.networks.module import trusting_code
from kdm_core.samples import SampleSpec
from kdm_core.serialization import load_model, read_remarks, save_model
from kdm_core.solvers.guidance import GuidanceConfig
from kdm_core.teachers.base import Teacher
from kdm_core.teachers.denoiser import Denoiser, DenoiserConfig
from kdm_core.teachers.exact import (
    FiniteData,
    FiniteDataConfig,
    GaussianMixture,
    GaussianMixtureConfig,
)
from kdm_core.teachers.flow_matching import FlowMatching, FlowMatchingConfig
from kdm_core.teachers.guidance import guided

TrainableConfig = Annotated[DenoiserConfig | FlowMatchingConfig, Field(discriminator="kind")]
TeacherConfig = Annotated[TrainableConfig | GaussianMixtureConfig | FiniteDataConfig,
                          Field(discriminator="kind")]

__all__ = ["Denoiser", "DenoiserConfig", "FlowMatching", "FlowMatchingConfig", "Teacher",
           "TeacherConfig", "TrainableConfig", "build_teacher", "load_sampled", "load_teacher",
           "save_teacher"]

LABEL_DROPOUT = "label_dropout"
GUIDE = "guide"  # the weaker teacher's folder, in the teacher's


def build_teacher(config: TeacherConfig, spec: SampleSpec) -> Teacher:
    """A teacher with fresh weights for samples as `spec` describes them."""
    if isinstance(config, DenoiserConfig):
        return Denoiser(config, spec)
    if isinstance(config, GaussianMixtureConfig):
        return GaussianMixture(config, spec)
    if isinstance(config, FiniteDataConfig):
        return FiniteData(config, spec)
    return FlowMatching(config, spec)


def save_teacher(folder: Path, teacher: Teacher) -> str:
    """Write a teacher as safetensors and JSON; returns its fingerprint."""
    config = {"teacher": teacher.config.model_dump(), "samples": teacher.spec.model_dump(),
              "network_times": teacher.network_times()}
    # A share of 0, which most have, is what folders that say nothing are taken to mean.
    told = teacher.spec.num_classes and teacher.label_dropout != 0
    return save_model(folder, teacher, config,
                      {LABEL_DROPOUT: teacher.label_dropout} if told else None)


def load_teacher(folder: Path, trust_code: bool = False) -> tuple[Teacher, str]:
    """Read what `save_teacher` wrote; returns the teacher in eval mode and its fingerprint.

    Args:
        trust_code: whether a user's own module may be imported, if the folder names one.

    Raises:
        KDMError: the folder names a module and nobody trusts it.
        DataError, MismatchError: as `kdm_core.serialization.load_model`.
    """

    def build(config: dict[str, Any]) -> Teacher:
        parsed: TeacherConfig = TypeAdapter(TeacherConfig).validate_python(config["teacher"])
        with trusting_code() if trust_code else nullcontext():
            return build_teacher(parsed, SampleSpec.model_validate(config["samples"]))

    teacher, mark = load_model(folder, build)
    if isinstance(teacher, Denoiser | FlowMatching):
        teacher.label_dropout = read_remarks(folder).get(LABEL_DROPOUT, 0.0)
    return teacher, mark


def load_sampled(
    folder: Path, guidance: GuidanceConfig | None, trust_code: bool = False, done: bool = False
) -> tuple[Teacher, str, str | None]:
    """A teacher as its pairs are sampled: guided or not.

    Args:
        folder, trust_code: as of `load_teacher`.
        guidance, done: as of `guided`.

    Returns:
        The teacher, its fingerprint, and the fingerprint of the weaker teacher if one guides it.
    """
    teacher, mark = load_teacher(folder, trust_code)
    weak, weak_mark = None, None
    if guidance is not None and guidance.kind == "autoguidance":
        weak, weak_mark = load_teacher(folder / GUIDE, trust_code)
    return guided(teacher, weak, guidance, done), mark, weak_mark
