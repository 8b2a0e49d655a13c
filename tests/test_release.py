"""What is released can be built, and a package index would take it."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.imports import PACKAGES, ROOT
from tests.support.project import environment


def test_wheel_and_sdist_are_in_order(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name,
                        ignore=shutil.ignore_patterns("__pycache__"))
    for command in (["build", "--no-isolation", "--outdir", tmp_path / "dist", source],
                    ["twine", "check", "--strict"]):
        if command[0] == "twine":
            command += sorted((tmp_path / "dist").iterdir())
            assert len(command) == 5
        done = subprocess.run([sys.executable, "-m", *command], env=environment(), cwd=tmp_path,
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
