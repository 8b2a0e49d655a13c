"""Git, run as a program in a folder.

GitPython's module is called `git`, so this one has another name (see `repro`).
"""

import os
import shutil
import subprocess
from pathlib import Path

from kdm_core.errors import KDMError

ELSEWHERE = ("GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_COMMON_DIR", "GIT_CONFIG",
             "GIT_CONFIG_COUNT", "GIT_CONFIG_PARAMETERS", "GIT_DIR", "GIT_GRAFT_FILE",
             "GIT_IMPLICIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_INTERNAL_SUPER_PREFIX",
             "GIT_NO_REPLACE_OBJECTS", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX",
             "GIT_REPLACE_REF_BASE", "GIT_SHALLOW_FILE", "GIT_WORK_TREE")
"""What `git rev-parse --local-env-vars` lists: set where git itself runs this, in a hook say, they
mean another repository. Who commits may be said in the environment, and stays."""


class GitError(KDMError):
    """There is no git, or it refuses; it says why."""


def require_git() -> None:
    """Raises: GitError: there is no git."""
    if shutil.which("git") is None:
        raise GitError("git is missing, which keeps the history of a project: install it (`apt "
                       "install git`, `dnf install git`, `brew install git`, or from "
                       "https://git-scm.com/downloads)")


def git(folder: Path, *arguments: str, fine: tuple[int, ...] = (0,)
        ) -> "subprocess.CompletedProcess[str]":
    """Run git in a folder.

    Args:
        fine: exit codes that are no error.

    Raises:
        GitError: it ended with another one, or there is none.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    require_git()
    done = subprocess.run(["git", *arguments], cwd=folder, env=environment, text=True,
                          capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode not in fine:
        raise GitError(f"`git {arguments[0]}` failed in {folder}: "
                       f"{(done.stderr or done.stdout).strip()}")
    return done
