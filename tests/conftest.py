"""What several test files share."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

from tests.support.project import make_project, python

if TYPE_CHECKING:
    from tests.support.s3_server import S3


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose whole pipeline (preset `smoke`) has run, made once for all test processes.

    Not to be changed: `tests.support.project.copy_project` makes one that may be. What `dvc repro`
    printed lies beside it, as repro.log.
    """
    base = tmp_path_factory.getbasetemp()
    # Test processes have folders of their own in that of the run.
    shared = base.parent if base.name.startswith("popen-") else base
    folder, log = shared / "finished" / "project", shared / "finished" / "repro.log"
    with FileLock(shared / "finished.lock"):
        if not log.exists():
            make_project(folder)
            done = python(folder, "dvc", "repro")
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
            log.write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def s3() -> "Iterator[S3]":
    """A server with the interface of S3; the environment says where it is."""
    from tests.support.s3_server import serving

    with serving() as server:
        yield server


@pytest.fixture
def bucket(s3: "S3") -> str:
    """A place in its bucket where there is nothing yet."""
    from tests.support.s3_server import BUCKET

    return f"s3://{BUCKET}/{uuid.uuid4().hex}"
