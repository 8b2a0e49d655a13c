"""Projects in folders of their own, made as `kdm new` makes them, to run the pipeline in."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.project import new
from tests.support import forks
from tests.support.imports import PACKAGES, ROOT


def make_project(folder: Path, preset: str = "smoke", with_code: bool = False) -> Path:
    """Make `folder` (made if missing) a project, committed.

    Args:
        with_code: as `add_code`.

    Returns:
        The folder, as an absolute path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Of its own, wherever the tests' folders lie.
    subprocess.run(["git", "init", "--quiet"], cwd=folder, env=environment(), check=True)
    new.make_project(folder, preset)
    if with_code:
        add_code(folder)
    commit(folder)
    return folder.resolve()


def add_code(project: Path) -> None:
    """Copy the packages into a project, for who edits them: `python -m …` there runs the copies,
    since the current folder comes before an installation."""
    for name in PACKAGES:
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))


def make_repository(folder: Path) -> None:
    """Make `folder`, with a pipeline of its own, a Git and DVC repository and commit all in it."""
    dvc = [sys.executable, "-m", "dvc"]
    for command in (
        ["git", "init", "--quiet"],
        [*dvc, "init", "--quiet"],
        [*dvc, "config", "core.analytics", "false"],
    ):
        subprocess.run(command, cwd=folder, env=environment(), check=True)
    commit(folder)


def commit(folder: Path) -> None:
    """Commit all that is in a Git repository."""
    for command in (
        # DVC's experiments are commits, and a machine may know no name for their author.
        ["git", "config", "user.name", "test"],
        ["git", "config", "user.email", "test@localhost"],
        ["git", "config", "commit.gpgsign", "false"],
        ["git", "add", "--all"],
        ["git", "commit", "--quiet", "--message=project"],
    ):
        subprocess.run(command, cwd=folder, env=environment(), check=True)


def environment(**more: str) -> dict[str, str]:
    """The environment to run commands with: this Python first and this code, nothing that calls
    home, and no settings of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("PREFECT_", "GIT_", "KDM_LOG"))}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
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


STUDIES = ("grids", "semantics", "vicinity", "interpolation", "outliers", "memorisation")


def python(
    folder: Path, *arguments: str, limit: int | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """What `python -m …` comes to there, with files limited to `limit` bytes if given."""
    return forks.run(arguments, folder, environment(**variables), limit)


def dvc(project: Path, *arguments: str) -> str:
    """Run a DVC command that must succeed; returns what it printed."""
    done = python(project, "dvc", *arguments)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def repro(project: Path, *arguments: str) -> set[str]:
    """`dvc repro`; returns the stages that were really run, but for the plan, which always is."""
    return set(re.findall(r"Running stage '(.+)'", dvc(project, "repro", *arguments))) - {"plan"}


def git(project: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=project, env=environment(), check=True)


def run(project: Path, *arguments: str, limit: int | None = None) -> tuple[int, str]:
    """The exit code and the output of `python -m …`."""
    done = python(project, *arguments, limit=limit)
    return done.returncode, done.stdout + done.stderr


def fails(project: Path, *arguments: str, saying: list[str], limit: int | None = None) -> None:
    code, output = run(project, *arguments, limit=limit)
    assert code != 0
    assert "Traceback" not in output
    for part in saying:
        assert part in output


def succeeds(project: Path, *arguments: str) -> str:
    code, output = run(project, *arguments)
    assert code == 0, output[-3000:]
    return output
