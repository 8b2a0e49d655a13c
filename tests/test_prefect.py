"""The deployed flow: a real server, a real worker, the smallest real pipeline."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from pipeline.repro import stage_graph
from tests.project import environment, make_project

START_S = 90
RUN_S = 240
STOP_S = 60


class Served(NamedTuple):
    """A project whose flow is served."""

    project: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes]
    log: Path

    def post(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """Ask the server's API."""
        url = f"{self.environment['PREFECT_API_URL']}/{path}"
        return list(httpx.post(url, json=body, timeout=30).raise_for_status().json())

    def run(self, succeeds: bool = True) -> dict[str, Any]:
        """Run the deployment as a person would, and return the new flow run."""
        known = {run["id"] for run in self.post("flow_runs/filter")}
        result = subprocess.run(
            [sys.executable, "-m", "prefect", "deployment", "run", "kdm-distill/kdm-distill",
             "--watch"],
            cwd=self.project.parent, env=self.environment, capture_output=True, text=True,
            timeout=RUN_S)
        said = result.stdout + result.stderr + self.log.read_text()
        assert (result.returncode == 0) == succeeds, said
        run, = (run for run in self.post("flow_runs/filter") if run["id"] not in known)
        return run

    def task_runs(self, run: dict[str, Any]) -> dict[str, str]:
        """The states of a flow run's tasks by their names."""
        runs = self.post("task_runs/filter", flow_runs={"id": {"any_": [run["id"]]}})
        names = [task["name"] for task in runs]
        assert len(names) == len(set(names)), names
        return {task["name"]: task["state_name"] for task in runs}

    def lines(self, run: dict[str, Any]) -> list[str]:
        """What the tasks of a flow run have logged."""
        logs = self.post("logs/filter", logs={"flow_run_id": {"any_": [run["id"]]}})
        return [entry["message"] for entry in logs]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    project = make_project(tmp_path / "project")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    outside = environment(PREFECT_HOME=str(tmp_path / "prefect"))
    log = tmp_path / "deploy.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.deploy", "--port", str(port)],
            cwd=project, env=outside, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            # Where the tests run in the background, Ctrl-C would be ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        deadline = time.monotonic() + START_S
        while "ready:" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        url = f"http://127.0.0.1:{port}/api"
        assert f"export PREFECT_API_URL={url}\n" in log.read_text()
        yield Served(project, outside | {"PREFECT_API_URL": url}, process, log)
    finally:
        process.terminate()
        process.wait(STOP_S)


@pytest.mark.timeout(START_S + 2 * RUN_S + STOP_S)
def test_deployment(served: Served) -> None:
    stages = set(stage_graph(served.project))

    first = served.run()
    assert first["state_type"] == "COMPLETED", served.log.read_text()
    assert served.task_runs(first) == dict.fromkeys(stages, "Completed")
    assert "Running stage 'teacher':" in served.lines(first)
    check_artifacts(served, first)
    recorded = (served.project / "dvc.lock").read_bytes()
    written = times(served.project / "reports")
    assert {"report.html", "report.json"} <= {path.name for path in written}

    second = served.run()
    assert second["state_type"] == "COMPLETED", served.log.read_text()
    assert served.task_runs(second) == dict.fromkeys(stages, "Completed")
    lines = served.lines(second)
    assert {f"Stage '{stage}' didn't change, skipping" for stage in stages} <= set(lines)
    assert not [line for line in lines if line.startswith("Running stage")]
    assert (served.project / "dvc.lock").read_bytes() == recorded
    assert times(served.project / "reports") == written

    (served.project / "params.yaml").write_text("sed: 1\n")
    third = served.run(succeeds=False)
    assert third["state_type"] == "FAILED"
    assert "params.yaml cannot be used" in third["state"]["message"]
    assert served.task_runs(third) == {}

    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(STOP_S) == 0
    assert "[deploy] stopped" in served.log.read_text()
    with pytest.raises(httpx.TransportError):
        served.post("flow_runs/filter")


def check_artifacts(served: Served, run: dict[str, Any]) -> None:
    """The flow run shows the figures and where the report is."""
    artifacts = {artifact["key"]: artifact for artifact in served.post(
        "artifacts/filter", artifacts={"flow_run_id": {"any_": [run["id"]]}})}
    table = artifacts["kdm-metrics"]
    assert table["type"] == "table"
    for column in ("teacher", "student kdm", "student kdm-f", "fd_classifier", "images_per_s"):
        assert column in table["data"]
    link = artifacts["kdm-report"]
    assert (served.project / "reports" / "report.html").as_uri() in link["data"]


def times(folder: Path) -> dict[Path, int]:
    """When the files of a folder were written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
