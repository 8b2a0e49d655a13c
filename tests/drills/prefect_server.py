"""The Prefect server is killed and started again, on its database, while a stage runs."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from ruamel.yaml import YAML

from pipeline.params.overrides import override
from tests.support.prefect_server import RUN_S, Server, deployed, wait_until
from tests.support.project import environment, make_project

AWAY_S = 8
STAGES = ["prepare_data", "teacher"]
# So that some of the training is left when the server is away.
LONGER = {"teacher": {"training": {"steps": 3000}}}


def run(workdir: Path) -> str:
    """Do it once, in a new project within `workdir`; returns what became of the run.

    Raises:
        AssertionError: the run did not end, or with other results than an undisturbed one.
    """
    project, undisturbed = (new_project(workdir / name) for name in ("project", "undisturbed"))
    server = Server(workdir / "server")
    try:
        server.start()
        with deployed(project, workdir / "prefect", server.url) as served:
            disturbed = served.start(stages=STAGES)
            work = project / "data/work/teacher"
            wait_until(lambda: any(work.glob("*/*-0*.safetensors")), RUN_S, served.log.read_text)
            stage, = served.programs("stages.teacher")
            with suspended(stage):
                server.kill()
                for _ in range(AWAY_S):
                    # It goes on, and says so, but not to its end.
                    stage.resume()
                    time.sleep(0.1)
                    stage.suspend()
                    time.sleep(0.9)
                server.start()
            state = served.finished(disturbed)
            again = served.finished(served.start(stages=STAGES))
            assert again["type"] == "COMPLETED", served.log.read_text()
    finally:
        server.kill()
    subprocess.run([sys.executable, "-m", "dvc", "repro", "teacher"], cwd=undisturbed, check=True,
                   env=environment(), capture_output=True)
    assert results(project) == results(undisturbed)
    return f"the run ends as {state['name']}, the same bytes"


@contextmanager
def suspended(process: psutil.Process) -> Iterator[None]:
    """A context in which a process stands still, and cannot end before the context does."""
    process.suspend()
    try:
        yield
    finally:
        process.resume()


def new_project(folder: Path) -> Path:
    project = make_project(folder)
    override(project / "params.yaml", LONGER)
    return project


def results(project: Path) -> dict[str, str]:
    """The hashes of what the stages have made; how long it took is no result."""
    stages = YAML(typ="safe").load(project / "dvc.lock")["stages"]
    return {out["path"]: out["md5"] for name in STAGES
            for out in stages[name]["outs"] if out["path"].startswith("data/")}
