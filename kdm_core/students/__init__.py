"""Students: one-step generators of several kinds, a file each."""

from typing import Annotated, Any, get_args

from pydantic import Field

from kdm_core.students.base import Student, StudentKind
from kdm_core.students.direct import DirectConfig
from kdm_core.students.hierarchical import HierarchicalConfig
from kdm_core.students.kdm import KDMConfig
from kdm_core.students.mean_flow import MeanFlowConfig
from kdm_core.students.rectified_flow import RectifiedFlowConfig

__all__ = ["ASSUMED", "KINDS", "DirectConfig", "HierarchicalConfig", "KDMConfig",
           "MeanFlowConfig", "RectifiedFlowConfig", "Student", "StudentConfig", "with_kind"]

AnyKind = (KDMConfig | DirectConfig | HierarchicalConfig | RectifiedFlowConfig
           | MeanFlowConfig)
StudentConfig = Annotated[AnyKind, Field(discriminator="kind")]
"""A student of any kind."""
ASSUMED = "kdm"
"""The kind of those that say none: files older than the others have it."""
KINDS: dict[str, type[StudentKind]] = {
    kind.model_fields["kind"].default: kind for kind in get_args(AnyKind)}


def with_kind(content: Any) -> Any:
    """A student's configuration as a file has it, with the kind that is meant where it says none.
    """
    return {"kind": ASSUMED, **content} if isinstance(content, dict) else content
