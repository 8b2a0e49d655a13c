"""Teachers that another run saved, or somebody who imported them."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from kdm_core.config import Config
from kdm_core.teachers import GUIDE, Teacher, load_teacher


class FolderSource(Config):
    """A folder of safetensors and JSON, with its weaker teacher in it if there is one.

    Attributes:
        folder: such as the `data/teacher` of another project.
        label_dropout: share of the labels that it was not shown in training, where the folder does
            not say it (older ones do not); None: as the folder says.
        trust_code: that you know what the module does that the folder may name.
    """

    source: Literal["folder"]
    folder: str = Field(min_length=1)
    label_dropout: float | None = Field(None, ge=0, le=1)
    trust_code: bool = False


def import_folder(source: FolderSource) -> Teacher:
    """The teacher, with the fingerprint that it has there.

    Raises:
        KDMError: as `kdm_core.teachers.load_teacher`.
    """
    teacher, _ = load_teacher(Path(source.folder), source.trust_code)
    teacher.named = True
    if source.label_dropout is not None:
        teacher.label_dropout = source.label_dropout
    return teacher


def import_folder_guide(source: FolderSource) -> Teacher | None:
    """The weaker teacher in the folder, if there is one."""
    folder = Path(source.folder) / GUIDE
    if not folder.is_dir():
        return None
    guide, _ = load_teacher(folder, source.trust_code)
    guide.named = True
    return guide
