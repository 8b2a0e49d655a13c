"""Serve the flow: a Prefect server, the deployment and a worker, until Ctrl-C.

Run as `python -m pipeline.flow.deploy` in the project's folder, where prefect.yaml names the
deployment; several projects may share a server. One that PREFECT_API_URL points to is used instead
of a new one. With `--check`, say whether a run would start there now.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import psutil
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from kdm_core.errors import KDMError
from pipeline.flow.addresses import without_password
from pipeline.flow.server import (
    ServerError,
    require_deployment,
    require_pool,
    require_server,
    server_url,
)
from pipeline.project.current import require_current_project
from pipeline.project.repro import GRACE_S, LAST_GRACE_S
from pipeline.runtime.processes import ask, programs, stop_group

HOST = "127.0.0.1"
POOL = "kdm"
FLOW = "kdm-distill"
FILE = Path("prefect.yaml")
START_S = 120.0
POLL_S = 0.25
# A flow run ends when its stages have ended and it has told the server.
FLOW_RUN_GRACE_S = GRACE_S + LAST_GRACE_S + 10
PROCESS_GRACE_S = 5.0
PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]


class DeployError(KDMError):
    """The flow cannot be served."""


def serve(port: int) -> None:
    """Serve the flow until one of the processes ends, or an exception (Ctrl-C) ends the wait.

    Raises:
        PipelineError: this is no project, or one of an older version.
        DeployError: prefect.yaml cannot be used, the server has the deployment of another folder
            under its name, something did not start, or has ended by itself.
    """
    require_current_project(Path())
    deployment = deployment_here()
    own_url = f"http://{HOST}:{port}/api"
    url = server_url() or own_url
    environment = {**os.environ, "PREFECT_API_URL": url, "DO_NOT_TRACK": "1",
                   "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    processes: dict[str, subprocess.Popen[bytes]] = {}
    with ExitStack() as stack:

        def start(name: str, *arguments: str) -> None:
            say(f"starting the {name}")
            process = subprocess.Popen([*PREFECT, *arguments], env=environment,
                                       stdin=subprocess.DEVNULL, start_new_session=True)
            processes[name] = process
            stack.callback(stop, process)

        stack.enter_context(temporary_settings({PREFECT_API_URL: url}))
        if url != own_url or answers(url):
            require_server()
            say(f"using the server at {without_password(url)}")
        else:
            require_free(port)
            start("server", "server", "start", "--host", HOST, "--port", str(port))
            wait_until(lambda: answers(url), "the server", processes)
        require_own(deployment)
        # The worker makes its work pool if there is none.
        start("worker", "worker", "start", "--pool", POOL, "--type", "process")
        wait_until(has_pool, f"the work pool {POOL}", processes)
        say(f"deploying {deployment}")
        if subprocess.run([*PREFECT, "deploy", "--all"], env=environment).returncode:
            raise DeployError("the deployment failed, see above")
        place = without_password(url)
        say(f"ready: {place.removesuffix('/api')} shows the runs. To start one, type elsewhere:\n\n"
            f"    export PREFECT_API_URL={place}\n"
            f"    prefect deployment run {deployment} --watch\n\nCtrl-C stops everything.\n")
        while True:
            require_running(processes)
            time.sleep(POLL_S)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop the server or the worker, and with a worker the flow runs that it has started.

    A worker that is told to stop waits for its flow runs to end by themselves, and they lead
    process groups of their own.
    """
    if process.poll() is None:
        flow_runs = programs(process)
        process.send_signal(signal.SIGINT)
        for flow_run in flow_runs:
            ask(flow_run)
        for flow_run in psutil.wait_procs(flow_runs, FLOW_RUN_GRACE_S)[1]:
            with suppress(psutil.NoSuchProcess):
                flow_run.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(PROCESS_GRACE_S)
    stop_group(process, PROCESS_GRACE_S)


def say(message: str) -> None:
    print(f"[deploy] {message}", flush=True)


def answers(url: str) -> bool:
    """Whether a Prefect server is at a URL and is up."""
    try:
        return httpx.get(f"{url}/health", timeout=5).is_success
    except httpx.TransportError:
        return False


def deployment_here() -> str:
    """How Prefect calls the deployment that prefect.yaml in the current folder describes.

    Raises:
        DeployError: there is no prefect.yaml, or none that names a deployment.
    """
    try:
        name = YAML(typ="safe", pure=True).load(FILE)["deployments"][0]["name"]
    except FileNotFoundError as error:
        raise DeployError(f"{FILE.absolute()} is missing: run this in a project's folder (`kdm new "
                          "DIR` makes one)") from error
    except (YAMLError, UnicodeDecodeError, KeyError, IndexError, TypeError) as error:
        raise DeployError(f"{FILE.absolute()} names no deployment ({type(error).__name__}: "
                          f"{error}): write it as deployments[0].name") from error
    return f"{FLOW}/{name}"


def require_own(deployment: str) -> None:
    """Make sure that the server does not run another project under this one's name.

    Raises:
        DeployError: it does.
    """
    with get_client(sync_client=True) as client:
        try:
            steps = client.read_deployment_by_name(deployment).pull_steps or []
        except ObjectNotFound:
            return
    for folder in (Path((settings or {}).get("directory", "")) for step in steps
                   for settings in step.values()):
        if folder.resolve() != Path.cwd() and (folder / FILE).is_file():
            raise DeployError(
                f"the deployment {deployment} of that server is the project in {folder}: give this "
                f"one another name in {FILE.absolute()} (deployments[0].name), or remove that one "
                f"(prefect deployment delete {deployment})")


def has_pool() -> bool:
    """Whether the server has our work pool.

    Raises:
        ServerError: it is paused.
    """
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(POOL)
        except ObjectNotFound:
            return False
        require_pool(client, POOL)
        return True


def require_free(port: int) -> None:
    """Make sure that a server can be started on a port.

    Raises:
        DeployError: something listens there already.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise DeployError(
                f"port {port} cannot be used ({error.strerror}): choose another with --port, or, "
                f"if a Prefect server runs there, export PREFECT_API_URL=http://{HOST}:{port}/api"
            ) from error


def wait_until(
    ready: Callable[[], bool], what: str, processes: dict[str, subprocess.Popen[bytes]]
) -> None:
    """Wait until something is there.

    Raises:
        DeployError: it is not in good time, or a process has ended.
    """
    deadline = time.monotonic() + START_S
    while not ready():
        require_running(processes)
        if time.monotonic() > deadline:
            raise DeployError(f"{what} is not there after {START_S:.0f} s")
        time.sleep(POLL_S)


def require_running(processes: dict[str, subprocess.Popen[bytes]]) -> None:
    """Make sure that all processes are running.

    Raises:
        DeployError: one has ended.
    """
    for name, process in processes.items():
        if process.poll() is not None:
            raise DeployError(f"the {name} has ended (exit code {process.returncode}), see above")


def check() -> None:
    """Make sure that a run of the deployment would start now.

    Raises:
        DeployError: prefect.yaml cannot be used.
        ServerError: it would not.
    """
    deployment = deployment_here()
    if server_url() is None:
        raise ServerError("PREFECT_API_URL is not set: export the URL of the server")
    require_server()
    with get_client(sync_client=True) as client:
        require_deployment(client, deployment)
    say(f"a run of {deployment} would start now")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.flow.deploy", description=__doc__)
    parser.add_argument("--port", type=int, default=4200, help="of a new server (%(default)s)")
    parser.add_argument("--check", action="store_true", help="whether a run would start now")
    arguments = parser.parse_args()
    # The children have sessions of their own and do not hear of it when we are told to stop.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, signal.default_int_handler)
    try:
        if arguments.check:
            check()
        else:
            serve(arguments.port)
    except KeyboardInterrupt:
        say("stopped")
    except KDMError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
