"""Teachers: trained diffusion and flow-matching models with a probability-flow ODE."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from kdm_core.samples import SampleSpec
from kdm_core.serialization import load_model, save_model
from kdm_core.teachers.base import Teacher
from kdm_core.teachers.edm import EDM, EDMConfig
from kdm_core.teachers.flow_matching import FlowMatching, FlowMatchingConfig

TeacherConfig = Annotated[EDMConfig | FlowMatchingConfig, Field(discriminator="kind")]

__all__ = ["EDM", "EDMConfig", "FlowMatching", "FlowMatchingConfig", "Teacher",
           "TeacherConfig", "build_teacher", "load_teacher", "save_teacher"]


def build_teacher(config: TeacherConfig, spec: SampleSpec) -> Teacher:
    """A teacher with fresh weights for samples as `spec` describes them."""
    if isinstance(config, EDMConfig):
        return EDM(config, spec)
    return FlowMatching(config, spec)


def save_teacher(folder: Path, teacher: Teacher) -> str:
    """Write a teacher as safetensors and JSON; returns its fingerprint."""
    return save_model(folder, teacher, {"teacher": teacher.config.model_dump(),
                                        "samples": teacher.spec.model_dump()})


def load_teacher(folder: Path) -> tuple[Teacher, str]:
    """Read what `save_teacher` wrote; returns the teacher in eval mode and its fingerprint."""

    def build(config: dict[str, Any]) -> Teacher:
        parsed: TeacherConfig = TypeAdapter(TeacherConfig).validate_python(config["teacher"])
        return build_teacher(parsed, SampleSpec.model_validate(config["samples"]))

    return load_model(folder, build)
