"""The stage train_student by several processes: lost ones, lost machines, what cannot work."""

import os
import re
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from kdm_core.errors import KDMError
from kdm_core.training.launcher import launch
from kdm_core.training.meeting import OWN_STORE, Machines, require_own
from pipeline.params.execution import TorchrunTraining
from tests.support.project import copy_project, environment
from tests.support.waiting import free_port, wait_until

STUDENT = "kdm-f"
STAGE = [sys.executable, "-m", "stages.train_student", STUDENT]
LIMIT_S = 200.0


@pytest.fixture(scope="module")
def undisturbed(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student that two processes train without an incident."""
    project = copy_project(finished, tmp_path_factory.mktemp("torchrun") / "project")
    use(project, "nproc_per_node: 2")
    started = start(project)
    assert ended(started) == 0, said(started)
    assert "on 2 × cpu" in said(started)
    assert "restart" not in said(started)
    return student(project)


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test leaves a process behind, or a folder of torch's for what its processes said."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield
        children = psutil.Process().children(recursive=True)
        left = [child for child in children if "stages.train_student" in child.cmdline()]
        for process in left:
            process.kill()
        folders = list(Path(folder).glob("torchelastic_*"))
    assert not left and not folders


def use(project: Path, engine: str) -> None:
    """Train with torchrun, with these settings; forget the student that is there."""
    path = project / "params.yaml"
    section = f"  training: {{engine: torchrun, {engine}}}"
    text, count = re.subn(r"  training: \{engine: .*", section, path.read_text())
    assert count == 1
    path.write_text(text)
    shutil.rmtree(student(project), ignore_errors=True)


def student(project: Path) -> Path:
    return project / "data/students" / STUDENT


def start(project: Path, command: list[str] | None = None, log: str = "log") -> psutil.Popen:
    """Start the stage, or another machine's command."""
    with (project / log).open("w") as file:
        process = psutil.Popen(command or STAGE, cwd=project, stdout=file, stderr=file,
                               env=environment(OMP_NUM_THREADS="1"))
    process.log = project / log
    return process


def said(process: psutil.Popen) -> str:
    return str(process.log.read_text())


def ended(process: psutil.Popen) -> int:
    return int(process.wait(LIMIT_S))


def wait_for(process: psutil.Popen, pattern: str) -> str:
    """Wait until a process has said something; returns what follows, up to the end of the line."""
    deadline = time.monotonic() + LIMIT_S
    while (found := re.search(f"{pattern}(.*)\n", said(process))) is None:
        assert process.poll() is None and time.monotonic() < deadline, said(process)
        time.sleep(0.05)
    return found[1]


def wait_for_checkpoint(project: Path, process: psutil.Popen) -> None:
    """Wait until the training is under way."""
    work = project / f"data/work/train_student@{STUDENT}"
    wait_until(lambda: process.poll() is not None or any(work.glob("*/checkpoint-0*")), LIMIT_S,
               lambda: said(process))
    assert process.poll() is None, said(process)


def workers(process: psutil.Popen) -> list[psutil.Process]:
    """The processes that train, by rank."""
    found = [child for child in process.children(recursive=True) if "RANK" in child.environ()]
    return sorted(found, key=lambda child: child.environ()["RANK"])


def same_bytes(found: Path, expected: Path) -> bool:
    return all((found / path.name).read_bytes() == path.read_bytes()
               for path in expected.iterdir())


def test_a_stopped_stage_and_a_killed_process(project: Path, undisturbed: Path) -> None:
    """The next run goes on, the stage itself after a loss, to the bytes of an undisturbed run."""
    use(project, "nproc_per_node: 2")
    stage = start(project)
    wait_for_checkpoint(project, stage)
    stage.terminate()
    assert ended(stage) == 128 + signal.SIGTERM
    stage = start(project)
    wait_for(stage, "on 2 × cpu")
    processes = workers(stage)
    # Nobody outside of this machine can connect, and tell those that train what to do.
    listening = [connection.laddr.ip for process in [stage, *processes]
                 for connection in process.net_connections() if connection.status == "LISTEN"]
    assert len(listening) >= 3
    assert set(listening) <= {"127.0.0.1", "::1"}
    processes[0].kill()
    assert ended(stage) == 0, said(stage)
    assert said(stage).count("restart 1 of 3") == 1
    assert ("process 0 of 2 was ended by SIGKILL (out of memory?): all go on from the last "
            "checkpoint") in said(stage)
    assert "Traceback" not in said(stage)
    assert same_bytes(student(project), undisturbed)


@pytest.mark.slow
def test_two_machines_of_which_one_goes(
    project: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """A second machine, started by the printed command, is killed: the first one goes on."""
    use(project, f"nproc_per_node: 1, nnodes: '1:2', rdzv_endpoint: '127.0.0.1:{free_port()}'")
    stage = start(project)
    typed = wait_for(stage, f"    {OWN_STORE}=1 ")
    # Of torch's own command, which leaves a folder where it is killed.
    other = start(project, ["env", f"TMPDIR={tmp_path}", f"{OWN_STORE}=1", *shlex.split(typed)],
                  "other.log")
    wait_for_checkpoint(project, stage)
    assert "on 2 × cpu" in said(stage) + said(other)
    for process in [other, *other.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    assert ended(stage) == 0, said(stage)
    assert "a process of another machine was lost: all go on" in said(stage)
    assert "on 1 × cpu" in said(stage)
    other.wait(LIMIT_S)
    expected = load_file(undisturbed / "weights.safetensors")
    found = load_file(student(project) / "weights.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-3, msg=name)


def test_machines_that_do_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (OWN_STORE, "OMP_NUM_THREADS", "TORCHELASTIC_SIGNALS_TO_HANDLE"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    endpoint, messages = f"127.0.0.1:{free_port()}", list[str]()
    machines = Machines(3, 4, endpoint, "kdm-test", patience_s=1)
    with pytest.raises(KDMError, match=f"fewer than 3 machines came to {endpoint} within 1 s"):
        launch("tests.support.distributed_worker", [], 2, 1, machines, messages.append)
    message, = messages
    assert message.startswith("waiting up to 1 s for other machines (2 to 3)")
    assert (f"torchrun --nnodes 3:4 --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint "
            f"{endpoint} --rdzv-id kdm-test ") in message
    assert message.endswith("--max-restarts 1 -m tests.support.distributed_worker\n")


def test_endpoints_that_are_not_here() -> None:
    with pytest.raises(KDMError, match=r"192\.0\.2\.1 is not this machine"):
        require_own("192.0.2.1", 29500)
    with pytest.raises(KDMError, match=r"rdzv_endpoint: no\.invalid:29500: no machine"):
        require_own("no.invalid", 29500)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(KDMError, match=f"127.0.0.1:{port}: this port cannot be used"):
            require_own("127.0.0.1", port)
    require_own("127.0.0.1", port)


@pytest.mark.parametrize(("fields", "problem"), [
    ({"nnodes": 2}, "rdzv_endpoint: several machines must know where to find each other"),
    ({"nnodes": "2:1", "rdzv_endpoint": "a:1"}, "neither a number of machines nor MIN:MAX"),
    ({"rdzv_endpoint": "user:password@host:1"}, "is no HOST:PORT"),
])
def test_engines_that_make_no_sense(fields: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        TorchrunTraining.model_validate({"engine": "torchrun", **fields})
