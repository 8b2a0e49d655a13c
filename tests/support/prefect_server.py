"""A Prefect server, and a project's flow that is served by it, for tests."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from pipeline.project.files import deployment_name
from tests.support import waiting
from tests.support.project import environment
from tests.support.waiting import free_port

START_S = 90
RUN_S = 240
STOP_S = 60
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
# A worker asks for runs every ten seconds otherwise.
QUICK = {"PREFECT_WORKER_QUERY_SECONDS": "1"}
# The server, which is what is asked most of the time, has other things to do.
wait_until = partial(waiting.wait_until, poll_s=0.2)


class Served:
    """A project whose flow is served.

    Attributes:
        url: of the server's API.
        deployment: how Prefect calls it.
        environment: of commands that talk to it.
        log: what `pipeline.flow.deploy` and the worker have said.
    """

    def __init__(self, project: Path, home: Path, url: str) -> None:
        self.project, self.url = project, url
        self.deployment = f"kdm-distill/{deployment_name(project.name)}"
        self.log = home / "deploy.log"
        self.environment = environment(PREFECT_HOME=str(home), PREFECT_API_URL=url)

    def post(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """Ask the server's API, again where its database is busy."""
        for pause_s in (0.5, 1, 2, 4, 0):
            answer = httpx.post(f"{self.url}/{path}", json=body, timeout=30)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(pause_s)
        return list(answer.raise_for_status().json())

    def prefect(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Prefect's command as a person would."""
        return subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *arguments], env=self.environment,
            cwd=self.project.parent, capture_output=True, text=True, timeout=RUN_S)

    def start(self, **parameters: Any) -> str:
        """Start a run of the deployment; returns its id."""
        with (temporary_settings({PREFECT_API_URL: self.url}),
              get_client(sync_client=True) as client):
            deployment = client.read_deployment_by_name(self.deployment)
            return str(client.create_flow_run_from_deployment(
                deployment.id, parameters=parameters).id)

    def state(self, run: str) -> dict[str, Any]:
        """The state of a flow run."""
        found, = self.post("flow_runs/filter", flow_runs={"id": {"any_": [run]}})
        return dict(found["state"])

    def finished(self, run: str) -> dict[str, Any]:
        """Wait for the end of a flow run; returns its last state."""
        wait_until(lambda: self.state(run)["type"] in FINAL, RUN_S, self.log.read_text)
        return self.state(run)

    def tasks(self, run: str) -> dict[str, dict[str, Any]]:
        """A flow run's task runs by their names."""
        runs = self.post("task_runs/filter", flow_runs={"id": {"any_": [run]}})
        names = [task["name"] for task in runs]
        assert len(names) == len(set(names)), names
        return {task["name"]: task for task in runs}

    def lines(self, run: str) -> list[str]:
        """What a flow run and its tasks have logged."""
        logs = self.post("logs/filter", logs={"flow_run_id": {"any_": [run]}})
        return [entry["message"] for entry in logs]

    def artifacts(self, run: str) -> dict[str, dict[str, Any]]:
        """What a flow run shows, by its keys."""
        found = self.post("artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}})
        return {artifact["key"]: artifact for artifact in found}

    def working(self) -> list[str]:
        """The commands of DVC and of stages that run in the project."""
        return [" ".join(process.info["cmdline"]) for process in self.programs("dvc", "stages")]

    def programs(self, *modules: str) -> list[psutil.Process]:
        """The processes in the project that run one of some modules."""
        return [process for process in psutil.process_iter(["cwd", "cmdline"])
                if process.info["cwd"] == str(self.project) and process.info["cmdline"]
                and any(part == module or part.startswith(f"{module}.")
                        for part in process.info["cmdline"] for module in modules)]


@contextmanager
def deployed(
    project: Path, home: Path, url: str | None = None, **variables: str
) -> Iterator[Served]:
    """Serve a project's flow with `python -m pipeline.flow.deploy` until the context is left.

    Args:
        home: a new folder, for what Prefect keeps.
        url: of a server that is there already; None to have one started.
        variables: of the environment of server and worker.
    """
    home.mkdir(parents=True, exist_ok=True)
    port = free_port()
    served = Served(project, home, url or f"http://127.0.0.1:{port}/api")
    outside = served.environment if url else environment(PREFECT_HOME=str(home))
    with served.log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.flow.deploy", "--port", str(port)], cwd=project,
            env=outside | QUICK | variables, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            # Where the tests run in the background, Ctrl-C would be ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        wait_until(lambda: process.poll() is not None or "ready:" in served.log.read_text(),
                   START_S, served.log.read_text)
        assert process.poll() is None, served.log.read_text()
        yield served
    finally:
        process.send_signal(signal.SIGINT)
        try:
            code = process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            kill_all(process)
            raise
        assert code == 0
        assert "[deploy] stopped" in served.log.read_text()


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it has started."""
    for one in (*psutil.Process(process.pid).children(recursive=True), process):
        with suppress(psutil.NoSuchProcess):
            one.kill()


class Server:
    """A Prefect server that can be killed and started again on its database."""

    def __init__(self, home: Path) -> None:
        self.home, self.port = home, free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "server.log").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "prefect", "server", "start", "--port", str(self.port)],
                env=environment(PREFECT_HOME=str(self.home)), stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True)
        wait_until(self.answers, START_S, (self.home / "server.log").read_text)

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).is_success
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
