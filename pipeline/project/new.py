"""Make any folder a project, and bring a project of an older version up to date.

Nothing that is there is overwritten, and what was begun and not finished is gone on with.
"""

import logging
import os
import re
import shlex
import shutil
from pathlib import Path

from kdm_core.errors import KDMError
from pipeline.project.current import PipelineError, is_of_ours, require_current_project
from pipeline.project.files import SCHEMA, contents, free_name, template
from pipeline.project.git_program import git, require_git

DEFAULT = "digits"
# Of these the user's own will do; a .gitignore gets the lines that it lacks.
KEPT = (".dvcignore", "README.md", ".gitignore")
# DVC puts dvc.lock on git's list for the next commit itself; else it asks for that after each run.
CONFIG = b"[core]\n    analytics = false\n    autostage = true\n"
FLOW = "pipeline.flow.flow.distill"
FORMER_FLOWS = re.compile(r"pipeline/flow\.py:distill|pipeline\.flow\.distill")
"""How prefect.yaml of older versions calls it."""


class NewError(KDMError):
    """No project can be made there."""


def make_project(folder: Path, preset: str = DEFAULT) -> list[str]:
    """Make a folder, which is made if it is missing, a project: a git and DVC repository with all
    that a run needs. Nothing is committed.

    Returns:
        What was done, a line each.

    Raises:
        PresetError: there is no such preset.
        PipelineError: it is a project of an older version.
        NewError: it is a project already, has other files of these names or cannot be written.
        GitError: there is no git, or it refuses.
    """
    folder = folder.resolve()
    files = contents(folder.name, preset)
    require_new(folder, files)
    require_git()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        said, within = init_git(folder)
        write(folder, ".dvcignore", files.pop(".dvcignore"))
        init_dvc(folder, within)
        notes = [note for name, content in files.items() if (note := write(folder, name, content))]
    except OSError as error:
        raise NewError(f"{error.filename or folder} cannot be written ({error.strerror}): choose "
                       "another folder, or mend that; then run this again") from error
    stage_files(folder, [".dvcignore", *files])
    return [f"{folder} is a project now (preset {preset}), {said}; nothing is committed yet",
            *notes]


def require_new(folder: Path, files: dict[str, bytes]) -> None:
    """Make sure that nothing in a folder is in the way.

    Raises:
        PipelineError, NewError: as `make_project`.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise NewError(f"{folder} is no folder: choose another name")
    if (folder / "dvc.yaml").is_file() and is_of_ours(folder / "dvc.yaml"):
        require_current_project(folder)
        raise NewError(f"{folder} is a project already: `kdm status` there says how it stands, and "
                       "`kdm preset use NAME` gives it the parameters of a preset")
    foreign = [name for name, content in files.items()
               if os.path.lexists(folder / name) and not may_stay(folder / name, content)]
    if foreign:
        raise NewError(f"{folder} has {', '.join(sorted(foreign))} already, and nothing is "
                       "overwritten: move that away, or choose another folder")


def may_stay(path: Path, content: bytes) -> bool:
    """Whether a file that is there will do, or is what would be written."""
    return path.is_file() and (path.name in KEPT or path.read_bytes() == content)


def init_git(folder: Path) -> tuple[str, bool]:
    """Make a folder a git repository unless it lies in one.

    A folder that the repository above ignores would be kept by none, so it gets its own.

    Returns:
        Which repository it is in, in words, and whether that begins above it.
    """
    top = next((base for base in (folder, *folder.parents) if (base / ".git").exists()), None)
    if top == folder:
        return "in the git repository that was there", False
    if top is not None and git(top, "check-ignore", "--quiet", f"{folder}/",
                               fine=(0, 1)).returncode:
        return f"in the git repository {top}", True
    git(folder, "init", "--quiet")
    return "a git repository of its own" + (f", since {top} ignores it" if top else ""), False


def init_dvc(folder: Path, within: bool) -> None:
    """Make a folder a DVC repository that does not call home, unless it is one.

    Args:
        within: whether its git repository begins above it.

    Raises:
        NewError: DVC refuses; it says why.
    """
    if not (folder / ".dvc").is_dir():
        from dvc.exceptions import DvcException
        from dvc.repo import Repo
        from scmrepo.exceptions import SCMError

        # It says what is said here in other words.
        logging.getLogger("dvc.repo.init").setLevel(logging.WARNING)
        try:
            Repo.init(str(folder), subdir=within).close()
        except (DvcException, SCMError) as error:
            raise NewError(f"`dvc init` failed in {folder}: {error}") from error
    config = folder / ".dvc" / "config"
    if not config.exists() or not config.read_bytes():
        config.write_bytes(CONFIG)


def write(folder: Path, name: str, content: bytes) -> str:
    """Write a file if it is not there; returns what became of one that is, empty if nothing."""
    path = folder / name
    try:
        with path.open("xb") as file:
            file.write(content)
        return ""
    except FileExistsError:
        there = path.read_bytes()
    if there == content:
        return ""
    if name != ".gitignore":
        return f"{name} was there and stays as it is"
    lacking = [line for line in content.splitlines() if line not in there.splitlines()]
    with path.open("ab") as file:
        file.write(b"".join([b"" if there.endswith(b"\n") or not there else b"\n",
                             *(line + b"\n" for line in lacking)]))
    return f".gitignore was there and got {len(lacking)} more lines" if lacking else ""


def stage_files(folder: Path, names: list[str]) -> None:
    """Have git commit the files the next time that somebody commits."""
    made = [name for name in (".dvc/config", ".dvc/.gitignore", *names)
            if name != SCHEMA and (folder / name).exists()]  # which is git-ignored
    git(folder, "add", "--", *made)


def refresh(folder: Path) -> list[str]:
    """Replace a project's dvc.yaml by today's; params.yaml stays as it is.

    Returns:
        What was done, a line each.

    Raises:
        PipelineError: there is no project.
        NewError: the folder cannot be written.
    """
    folder = folder.resolve()
    pipeline, today = folder / "dvc.yaml", template("pipeline.yaml")
    if not pipeline.is_file() or not (folder / ".dvc").is_dir():
        raise PipelineError(f"{folder} is no project, so there is nothing to refresh: "
                            f"`kdm new {shlex.quote(str(folder))}` makes it one")
    said = []
    try:
        if pipeline.read_bytes() == today:
            said.append(f"{pipeline} is today's already")
        else:
            said.append(f"{pipeline} is today's now; the old one is {replace(pipeline, today)}")
        # Former metrics, which git kept, are outputs in DVC's cache now.
        git(folder, "rm", "-r", "-q", "--cached", "--ignore-unmatch", "reports/timings",
            "reports/metrics", fine=(0, 128))
        served = folder / "prefect.yaml"
        if served.is_file() and FORMER_FLOWS.search(
                text := served.read_text(encoding="utf-8")):
            kept = replace(served, FORMER_FLOWS.sub(FLOW, text).encode())
            said.append(f"{served} starts the flow of the installation now; the old one is {kept}")
    except OSError as error:
        raise NewError(f"{error.filename or folder} cannot be written ({error.strerror}): mend "
                       "that, then run this again") from error
    if (folder / "stages/__init__.py").exists():
        said.append(f"{folder} has code of its own (stages/), which its stages run in place of "
                    "what is installed: update it, or move it away")
    return said


def replace(path: Path, content: bytes) -> str:
    """Give a file another content, all at once; returns under which name the old one is kept."""
    backup, fresh = free_name(path), path.with_name(f"{path.name}.new")
    shutil.copy2(path, backup)
    fresh.write_bytes(content)
    fresh.replace(path)
    return backup.name
