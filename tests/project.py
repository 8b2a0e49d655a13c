"""A complete copy of the project in a folder of its own, to run the pipeline in."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
FOLDERS = ("kdm_core", "stages", "pipeline", "presets")
FILES = ("dvc.yaml", "prefect.yaml")
# Not needed to run, but part of the project where they exist.
OPTIONAL = (".gitignore", ".dvcignore")


def make_project(folder: Path, preset: str = "smoke") -> Path:
    """Copy the project to `folder` (made if missing) as a Git and DVC repository, committed.

    The packages' copies are the ones that `python -m …` finds there: the current folder comes
    before an editable installation.

    Returns:
        The folder, as an absolute path.
    """
    folder = folder.resolve()
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name,
                        ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    for name in OPTIONAL:
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder)
    shutil.copy(ROOT / "presets" / f"{preset}.yaml", folder / "params.yaml")
    make_repository(folder)
    return folder


def make_repository(folder: Path) -> None:
    """Make `folder` a Git and DVC repository and commit all that is in it."""
    dvc = [sys.executable, "-m", "dvc"]
    for command in (
        ["git", "init", "--quiet"],
        [*dvc, "init", "--quiet"],
        [*dvc, "config", "core.analytics", "false"],
        # DVC's experiments are commits, and a machine may know no name for their author.
        ["git", "config", "user.name", "test"],
        ["git", "config", "user.email", "test@localhost"],
        ["git", "config", "commit.gpgsign", "false"],
        ["git", "add", "--all"],
        ["git", "commit", "--quiet", "--message=project"],
    ):
        subprocess.run(command, cwd=folder, env=environment(), check=True)


def environment(**more: str) -> dict[str, str]:
    """The environment to run commands with: this Python first, nothing that calls home, and no
    settings of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("PREFECT_", "GIT_", "KDM_LOG", "KDM_NOTIFY"))}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        **more,
    }


def copy_project(project: Path, folder: Path) -> Path:
    """Copy a project with all that lies in it: results, DVC's cache, unfinished work."""
    shutil.copytree(project, folder, symlinks=True)
    return folder.resolve()


def edit(project: Path, change: Callable[[Any], None]) -> None:
    """Change a project's params.yaml as a user with an editor does."""
    path, yaml = project / "params.yaml", YAML()
    values = yaml.load(path)
    change(values)
    yaml.dump(values, path)
