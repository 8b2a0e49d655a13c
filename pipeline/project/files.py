"""The files of projects that the package carries: presets and templates."""

import json
import re
from pathlib import Path
from string import Template

from kdm_core.errors import KDMError

PRESETS = Path(__file__).parent / "presets"
TEMPLATES = Path(__file__).parent / "templates"
"""None is called dvc.yaml: DVC takes any such file below a project for a part of its pipeline."""
SCHEMA = "params.schema.json"
"""By which editors complete and check params.yaml; `kdm params schema` makes it."""
OF_THE_REPOSITORY = "  - name: kdm-distill\n"
"""The line of prefect.yaml that names the deployment."""


class PresetError(KDMError):
    """There is no such preset."""


def preset_path(name: str) -> Path:
    """The file of a preset.

    Raises:
        PresetError: there is none of that name.
    """
    names = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in names:
        raise PresetError(f"no preset '{name}'; there are {', '.join(names)}")
    return PRESETS / f"{name}.yaml"


def template(name: str) -> bytes:
    """A file of TEMPLATES."""
    return (TEMPLATES / name).read_bytes()


def contents(name: str, preset: str) -> dict[str, bytes]:
    """What lies in a new project, by the files' names; dvc.yaml, which makes it one, comes last.

    Args:
        name: of the project's folder.

    Raises:
        PresetError: there is no such preset.
    """
    deployment = deployment_name(name)
    readme = Template(template("README.md").decode()).substitute(
        name=name, preset=preset, deployment=deployment)
    served = template("prefect.yaml").decode().replace(
        OF_THE_REPOSITORY, f"  - name: {json.dumps(deployment)}\n")
    return {
        ".dvcignore": template("dvcignore"),
        ".gitignore": template("gitignore"),
        "README.md": readme.encode(),
        "prefect.yaml": served.encode(),
        SCHEMA: (PRESETS / SCHEMA).read_bytes(),
        "params.yaml": preset_path(preset).read_bytes(),
        "dvc.yaml": template("pipeline.yaml"),
    }


def deployment_name(folder: str) -> str:
    """How Prefect is to call the deployment of a project, after its folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder).strip("-.") or "project"


def free_name(path: Path) -> Path:
    """A name for a backup of a file that no other backup has."""
    backup, count = path.with_name(f"{path.name}.bak"), 1
    while backup.exists():
        count += 1
        backup = path.with_name(f"{path.name}.bak{count}")
    return backup
