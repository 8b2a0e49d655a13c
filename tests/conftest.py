"""What several test files share."""

import os
import secrets
import uuid
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from hypothesis import settings

from tests.support.project import copy_project, make_project, python

if TYPE_CHECKING:
    from tests.support.s3_server import S3

# No test is timed: on a busy machine, or the first of a process, an example takes what it takes.
settings.register_profile("untimed", settings(), deadline=None)
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    # Processes that share the tests draw the same.
    seed = os.environ.setdefault("KDM_TEST_SEED", str(secrets.randbelow(2**31)))
    parser.addoption("--seed", type=int, default=seed, help="of all that the tests draw at random")
    parser.addoption("--shuffle", action="store_true", help="run files, and tests in them, in an "
                     "order by the seed")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"drawn by --seed {terminalreporter.config.option.seed}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.shuffle:
        random, files = Random(config.option.seed), defaultdict[Path, list[pytest.Item]](list)
        for item in items:
            files[item.path].append(item)
        for tests in files.values():
            random.shuffle(tests)
        items[:] = chain.from_iterable(random.sample(list(files.values()), len(files)))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose whole pipeline (preset `smoke`) has run, made once for all test processes.

    Not to be changed: `project` is one that may be. What `dvc repro` printed lies beside it, as
    repro.log.
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


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    """A finished project that may be changed."""
    return copy_project(finished, tmp_path / "project")


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
