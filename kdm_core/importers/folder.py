"""Teachers that another run of this project saved, or `kdm teacher import`."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from kdm_core.config import Config
from kdm_core.teachers import GUIDE, Teacher, load_teacher


class FolderSource(Config):
    """A folder of safetensors and JSON, with its weaker teacher in it if there is one.

    Attributes:
        folder: such as the `data/teacher` of another project.
        trust_code: that you know what the module does that the folder may name.
    """

    source: Literal["folder"]
    folder: str = Field(min_length=1)
    trust_code: bool = False


def import_folder(source: FolderSource) -> Teacher:
    """The teacher, with the fingerprint that it has there.

    Raises:
        KDMError: as `kdm_core.teachers.load_teacher`.
    """
    return load_teacher(Path(source.folder), source.trust_code)[0]


def import_folder_guide(source: FolderSource) -> Teacher | None:
    """The weaker teacher in the folder, if there is one."""
    folder = Path(source.folder) / GUIDE
    return load_teacher(folder, source.trust_code)[0] if folder.is_dir() else None
