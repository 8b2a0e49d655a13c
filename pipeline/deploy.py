"""Serve the flow: a Prefect server, the deployment and a worker, until Ctrl-C.

Run as `python -m pipeline.deploy` in the project's folder. A server that PREFECT_API_URL points to
is used instead of a new one.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]
from prefect.settings import get_current_settings

from kdm_core.errors import KDMError
from pipeline.processes import stop_group
from pipeline.repro import GRACE_S

HOST = "127.0.0.1"
POOL = "kdm"
DEPLOYMENT = "kdm-distill/kdm-distill"
START_S = 120.0
POLL_S = 0.25
# A flow run ends when its stages have ended and it has told the server.
FLOW_RUN_GRACE_S = GRACE_S + 15
PROCESS_GRACE_S = 5.0
PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]


class DeployError(KDMError):
    """The flow cannot be served."""


def serve(port: int) -> None:
    """Serve the flow until one of the processes ends, or an exception (Ctrl-C) ends the wait.

    Raises:
        DeployError: something did not start, or has ended by itself.
    """
    if not Path("prefect.yaml").is_file():
        raise DeployError("prefect.yaml is missing: run this in the project's folder")
    own_url = f"http://{HOST}:{port}/api"
    url = get_current_settings().api.url or own_url
    environment = {
        **os.environ,
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    processes: dict[str, subprocess.Popen[bytes]] = {}
    with ExitStack() as stack:

        def start(name: str, *arguments: str) -> None:
            say(f"starting the {name}")
            process = subprocess.Popen([*PREFECT, *arguments], env=environment,
                                       stdin=subprocess.DEVNULL, start_new_session=True)
            processes[name] = process
            stack.callback(stop, process)

        if answers(f"{url}/health"):
            say(f"using the server at {url}")
        elif url != own_url:
            raise DeployError(f"PREFECT_API_URL is {url}, where no server answers: start it, or "
                              "unset the variable to have one started here")
        else:
            require_free(port)
            start("server", "server", "start", "--host", HOST, "--port", str(port))
            wait_for(f"{url}/health", processes)
        # The worker makes its work pool if there is none.
        start("worker", "worker", "start", "--pool", POOL, "--type", "process")
        wait_for(f"{url}/work_pools/{POOL}", processes)
        say("deploying the flow")
        if subprocess.run([*PREFECT, "deploy", "--all"], env=environment).returncode:
            raise DeployError("the deployment failed, see above")
        say(f"ready: {url.removesuffix('/api')} shows the runs. To start one, type elsewhere:\n\n"
            f"    export PREFECT_API_URL={url}\n"
            f"    prefect deployment run {DEPLOYMENT} --watch\n\nCtrl-C stops everything.\n")
        while True:
            require_running(processes)
            time.sleep(POLL_S)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop the server or the worker, and with a worker the flow runs that it has started.

    A worker that is told to stop waits for its flow runs to end by themselves, and they lead
    process groups of their own.
    """
    if process.poll() is None:
        flow_runs = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        for flow_run in flow_runs:
            flow_run.terminate()
        for flow_run in psutil.wait_procs(flow_runs, FLOW_RUN_GRACE_S)[1]:
            flow_run.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(PROCESS_GRACE_S)
    stop_group(process, PROCESS_GRACE_S)


def say(message: str) -> None:
    print(f"[deploy] {message}", flush=True)


def answers(url: str) -> bool:
    """Whether a GET succeeds."""
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.TransportError:
        return False


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


def wait_for(url: str, processes: dict[str, subprocess.Popen[bytes]]) -> None:
    """Wait until a GET succeeds.

    Raises:
        DeployError: it does not in good time, or a process has ended.
    """
    deadline = time.monotonic() + START_S
    while not answers(url):
        require_running(processes)
        if time.monotonic() > deadline:
            raise DeployError(f"{url} does not answer after {START_S:.0f} s")
        time.sleep(POLL_S)


def require_running(processes: dict[str, subprocess.Popen[bytes]]) -> None:
    """Make sure that all processes are running.

    Raises:
        DeployError: one has ended.
    """
    for name, process in processes.items():
        if process.poll() is not None:
            raise DeployError(f"the {name} has ended (exit code {process.returncode}), see above")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.deploy", description=__doc__)
    parser.add_argument("--port", type=int, default=4200, help="of a new server (%(default)s)")
    arguments = parser.parse_args()
    # The children have sessions of their own and do not hear of it when we are told to stop.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, signal.default_int_handler)
    try:
        serve(arguments.port)
    except KeyboardInterrupt:
        say("stopped")
    except KDMError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
