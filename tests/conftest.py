"""What several test files share."""

import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from tests.project import environment, make_project


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose whole pipeline (preset `smoke`) has run, made once for all test processes.

    Not to be changed: `tests.project.copy_project` makes one that may be. What `dvc repro` printed
    lies beside it, as repro.log.
    """
    base = tmp_path_factory.getbasetemp()
    # Test processes have folders of their own in that of the run.
    shared = base.parent if base.name.startswith("popen-") else base
    folder, log = shared / "finished" / "project", shared / "finished" / "repro.log"
    with FileLock(shared / "finished.lock"):
        if not log.exists():
            make_project(folder)
            done = subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=folder, text=True,
                                  env=environment(), capture_output=True)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
            log.write_text(done.stdout)
    return folder
