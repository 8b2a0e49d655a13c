"""Whether a folder is a project that this version can run."""

import shlex
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from kdm_core.errors import KDMError

CODE = ("kdm_core/", "pipeline/", "stages/")
PROGRAM = "python -m stages."


class PipelineError(KDMError):
    """The folder has no pipeline that DVC can read, or one of an older version."""


def require_current_project(folder: Path) -> None:
    """Make sure that there is a pipeline, and that it is not one of an older version.

    Raises:
        PipelineError: there is none, or it is; the message says what to do.
    """
    here = folder.absolute()
    if not (folder / "dvc.yaml").is_file():
        raise PipelineError(f"{here / 'dvc.yaml'} is missing, so this is no project: run this in "
                            "the folder of one, or make one with `kdm new DIR`")
    if not (folder / ".dvc").is_dir():
        raise PipelineError(f"{here} is no DVC repository: run `dvc init` there, or `dvc init "
                            "--subdir` where the git repository begins above it")
    if age := sign_of_age(folder / "dvc.yaml"):
        raise PipelineError(
            f"{here / 'dvc.yaml'} is of an older version ({age}): `kdm new --refresh "
            f"{shlex.quote(str(here))}` replaces it by today's and leaves params.yaml alone")


def is_of_ours(file: Path) -> bool:
    """Whether a dvc.yaml runs stages of this package."""
    return any(str(stage.get("cmd", "")).startswith(PROGRAM) for stage in stages_in(file).values())


def sign_of_age(file: Path) -> str:
    """What says that a dvc.yaml was written for an older version; empty if nothing does."""
    found = stages_in(file)
    if "plan" not in found and is_of_ours(file):
        return "it has no stage `plan`"
    listed = [dep for stage in found.values() for dep in stage.get("deps") or []
              if str(dep).startswith(CODE)]
    if listed:
        return f"it lists code: {listed[0]}"
    metrics = [str(path) for stage in found.values() for path in stage.get("metrics") or []]
    return "its metrics are all figures" if any("reports/timings/" in path for path in metrics
                                                ) else ""


def stages_in(file: Path) -> dict[str, dict[str, Any]]:
    """The stages in a dvc.yaml, by name; none where DVC could not read it, which it says better."""
    try:
        document = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError):
        return {}
    stages = document.get("stages") if isinstance(document, dict) else None
    if not isinstance(stages, dict):
        return {}
    whole = {name: stage.get("do", stage) for name, stage in stages.items()
             if isinstance(stage, dict)}
    return {name: stage for name, stage in whole.items() if isinstance(stage, dict)}
