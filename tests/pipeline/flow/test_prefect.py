"""The deployed flow: a real server, a real worker, a real project."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.settings import PREFECT_API_URL, temporary_settings

from pipeline.flow.deploy import check
from pipeline.flow.server import ServerError, require_deployment, require_pool
from pipeline.project.repro import stage_graph
from tests.support.prefect_server import RUN_S, START_S, STOP_S, Served, deployed, wait_until
from tests.support.project import copy_project, make_project

# The student takes a while, so that the run can be cancelled in its midst.
OVERRIDE = {"students": {"kdm-f": {"training": {"steps": 1500}}}}
# Who waits for a slot asks again soon.
WAITS = {"PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
         "PREFECT_SERVER_CONCURRENCY_MAXIMUM_CONCURRENCY_SLOT_WAIT_SECONDS": "1"}


@pytest.fixture
def served(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Served]:
    project = copy_project(finished, tmp_path / "project")
    monkeypatch.chdir(project)
    with deployed(project, tmp_path / "prefect", **WAITS) as served:
        assert f"export PREFECT_API_URL={served.url}\n" in served.log.read_text()
        with temporary_settings({PREFECT_API_URL: served.url}):
            yield served


@pytest.mark.timeout(START_S + 3 * RUN_S + STOP_S)
def test_deployment(served: Served) -> None:
    check()
    check_refusals(served)

    # One is cancelled in the midst of a student, and one waits for it.
    first = run_as_a_person(served, f"overrides={json.dumps(OVERRIDE)}",
                            'stages=["train_student@kdm-f"]')
    wait_until(lambda: newest_checkpoint(served) > 0, RUN_S, served.log.read_text)
    second = served.start(overrides=OVERRIDE)
    wait_until(lambda: served.state(second)["name"] == "AwaitingConcurrencySlot", STOP_S,
               served.log.read_text)
    assert any("stages.train_student" in command for command in served.working())
    assert served.prefect("flow-run", "cancel", first).returncode == 0
    assert served.finished(first)["type"] == "CANCELLED"
    assert served.working() == []
    kept = newest_checkpoint(served)
    table = json.loads(served.artifacts(first)["kdm-overrides"]["data"])
    assert table == [{"parameter": "students.kdm-f.training.steps", "before": "200", "now": "1500"}]

    # The one that waited goes on where the first one was.
    wait_until(lambda: newest_checkpoint(served) != kept, RUN_S, served.log.read_text)
    assert newest_checkpoint(served) > kept
    assert served.finished(second)["type"] == "COMPLETED", served.log.read_text()
    stages = set(stage_graph(served.project))
    assert {name: task["state_name"] for name, task in served.tasks(second).items()
            } == dict.fromkeys(stages, "Completed")
    check_artifacts(served, second)

    check_cached(served, stages)
    check_limit(served)


@pytest.mark.slow
@pytest.mark.timeout(2 * START_S + 2 * RUN_S + 2 * STOP_S)
def test_two_projects_on_one_server(tmp_path: Path) -> None:
    """Each runs in its own folder, which has no code; a third of the same name is refused."""
    projects = [make_project(tmp_path / name) for name in ("a/x", "y", "b/x")]
    with (deployed(projects[0], tmp_path / "first") as first,
          deployed(projects[1], tmp_path / "second", first.url) as second):
        for served in (first, second):
            assert served.finished(served.start(stages=["plan", "prepare_data"])
                                   )["type"] == "COMPLETED", served.log.read_text()
            assert (served.project / "data/dataset").is_dir()
            assert not (projects[2] / "data").exists()
        refused = subprocess.run(
            [sys.executable, "-m", "pipeline.flow.deploy"], cwd=projects[2], text=True,
            env=first.environment, capture_output=True, timeout=START_S)
        assert refused.returncode == 1
        assert f"kdm-distill/x of that server is the project in {projects[0]}: " in refused.stderr


def run_as_a_person(served: Served, *parameters: str) -> str:
    """Run the deployment with Prefect's command; returns the run's id."""
    given = [word for parameter in parameters for word in ("-p", parameter)]
    made = served.prefect("deployment", "run", served.deployment, *given)
    assert made.returncode == 0, made.stdout + made.stderr
    run, = served.post("flow_runs/filter")
    return str(run["id"])


def check_refusals(served: Served) -> None:
    """What cannot be run is refused at once, by the server where it can know."""
    params = (served.project / "params.yaml").read_bytes()
    refused = served.prefect("deployment", "run", served.deployment, "-p",
                             'overrides={"students": {"kdm": {"training": {"steps": -3}}}}')
    said = " ".join((refused.stdout + refused.stderr).split())
    assert refused.returncode == 1, said
    assert "'overrides.students.kdm.training.steps'. Failure reason: -3 is less" in said, said
    for wrong in ({"overrides": {"pairs": {"trian": 3}}}, {"stage_timeout_s": -1}):
        with pytest.raises(httpx.HTTPStatusError, match="409"):
            served.start(**wrong)
    assert served.post("flow_runs/filter") == []
    assert (served.project / "params.yaml").read_bytes() == params
    with get_client(sync_client=True) as client:
        with pytest.raises(ServerError, match="no deployment kdm-distill/other"):
            require_deployment(client, "kdm-distill/other")
        with pytest.raises(ServerError, match="no work pool docker"):
            require_pool(client, "docker")
        client.update_work_pool("kdm", WorkPoolUpdate(is_paused=True))
        with pytest.raises(ServerError, match="work pool kdm is paused"):
            check()
        client.update_work_pool("kdm", WorkPoolUpdate(is_paused=False))


def newest_checkpoint(served: Served) -> int:
    """The last step that the student has kept; 0 if there is none."""
    files = (served.project / "data/work/train_student@kdm-f").glob("*/checkpoint-*.safetensors")
    return max((int(file.stem.split("-")[1]) for file in files), default=0)


def check_artifacts(served: Served, run: str) -> None:
    """The flow run shows the figures, where the report is, and how far its stages are."""
    artifacts = served.artifacts(run)
    table = artifacts["kdm-metrics"]
    assert table["type"] == "table"
    for column in ("verdict", "teacher", "student kdm", "student kdm-f", "fd_classifier",
                   "images_per_s"):
        assert column in table["data"]
    link = artifacts["kdm-report"]
    assert (served.project / "reports" / "report.html").as_uri() in link["data"]
    progress = artifacts["kdm-progress-train-student-kdm-f"]
    assert progress["type"] == "progress" and progress["data"] == 100


def check_cached(served: Served, stages: set[str]) -> None:
    """A run of what is there already takes seconds, and does nothing."""
    recorded = (served.project / "dvc.lock").read_bytes()
    written = times(served.project / "reports")
    started = time.monotonic()
    run = served.start()
    assert served.finished(run)["type"] == "COMPLETED", served.log.read_text()
    print(f"all stages from the cache in {time.monotonic() - started:.1f} s")
    # Logs arrive a moment after the state.
    wait_until(lambda: served.lines(run).count("nothing that it depends on has changed")
               == len(stages), STOP_S, served.log.read_text)
    assert not [line for line in served.lines(run) if line.startswith("Running stage")]
    assert (served.project / "dvc.lock").read_bytes() == recorded
    assert times(served.project / "reports") == written


def check_limit(served: Served) -> None:
    """With a limit of one, stages that could run side by side take turns."""
    assert served.prefect("concurrency-limit", "create", "kdm-stage", "1").returncode == 0
    run = served.start(stages=["evaluate@kdm", "evaluate@kdm-f"])
    assert served.finished(run)["type"] == "COMPLETED", served.log.read_text()
    spans = sorted((task["start_time"], task["end_time"])
                   for name, task in served.tasks(run).items() if name != "plan")
    assert len(spans) == 2 and spans[0][1] <= spans[1][0], spans


def times(folder: Path) -> dict[Path, int]:
    """When the files of a folder were written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
