"""Access to DVC: the graph, stages side by side, failures, and that nothing is left running."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path

import prefect
import psutil
import pytest
import zc.lockfile  # type: ignore[import-untyped]
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    get_current_settings,
    temporary_settings,
)
from ruamel.yaml import YAML

from kdm_core.errors import KDMError
from pipeline.flow import artifacts, deploy, flow
from pipeline.flow.artifacts import StageProgress, key_of
from pipeline.flow.flow import (
    GPU_TAG,
    TAG,
    FlowError,
    only_run,
    prepare,
    select,
    tags_of,
    worth_retrying,
)
from pipeline.flow.server import ServerError, require_server, require_version
from pipeline.params.overrides import MISSING, Change
from pipeline.project import repro
from pipeline.project.dvc_records import PipelineError, empty_runs
from pipeline.project.repro import (
    Lines,
    StageError,
    StageStopped,
    StageTimeout,
    reproduce,
    stage_graph,
)
from pipeline.runtime.status import ProgressStatus, status_file
from tests.support.project import ROOT, environment, make_project, make_repository

PIPELINE = """
stages:
  data:
    cmd: echo made > data.txt
    outs: [data.txt]
  train_student:
    foreach: [kdm, kdm-f]
    do:
      cmd: touch ${item}.on; for i in $(seq 100); do ls kdm.on kdm-f.on && break; sleep 0.1; done;
        ls kdm.on kdm-f.on && echo ${item} > ${item}.out
      deps: [data.txt]
      outs:
        - ${item}.out
  mend:
    cmd: >-
      echo '[mend] error: the file is missing'; exit 1
  crash:
    cmd: echo working; kill -9 $$
  shard:
    cmd: python shard.py; exit $?
    outs: [shard.done]
  long:
    cmd: (trap '' TERM; echo $$ > long.pid; sleep 60; sleep 60) & sleep 60
"""


# As sample_pairs: asked to end, it says so, finishes what is under way, and ends with 143.
SHARD = """
import signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
print("at work", flush=True)
while not asked:
    time.sleep(0.02)
print("finishing", flush=True)
time.sleep(1)
open("shard.done", "w").close()
print("finished", flush=True)
sys.exit(143)
"""


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "shard.py").write_text(SHARD)
    make_repository(tmp_path)
    return tmp_path


def run_state(error: Exception) -> object:
    """A task run's failed state, as Prefect's retry condition gets it."""
    from prefect.states import Failed

    return Failed(message=str(error), data=error)


def test_graph_of_the_real_pipeline(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    graph = stage_graph(project)
    students = ("kdm", "kdm-f")
    assert set(graph) == {
        "plan", "prepare_data", "reference", "autoencoder", "teacher", "sample_pairs",
        "filter_pairs", "report",
        *(f"{stage}@{name}" for stage in ("train_student", "evaluate", "study")
          for name in students)}
    assert graph["plan"] == set() and graph["prepare_data"] == {"plan"}
    assert graph["train_student@kdm"] == {
        "plan", "prepare_data", "reference", "autoencoder", "teacher", "sample_pairs",
        "filter_pairs"}
    assert {"teacher", "train_student@kdm-f"} <= graph["evaluate@kdm-f"]
    assert "train_student@kdm" not in graph["evaluate@kdm-f"]
    assert {"evaluate@kdm", "evaluate@kdm-f"} <= graph["report"]
    order = list(graph)
    assert all(order.index(need) < order.index(stage) for stage in graph for need in graph[stage])


def test_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"dvc\.yaml is missing"):
        stage_graph(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    with pytest.raises(PipelineError, match="no DVC repository"):
        stage_graph(tmp_path)
    make_repository(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: 1")
    with pytest.raises(PipelineError, match="dvc.yaml"):
        stage_graph(tmp_path)


def test_a_lock_file_that_is_cut(pipeline: Path) -> None:
    """What DVC says of it is followed by what to do."""
    lock = pipeline / "dvc.lock"
    for cut in ("stages:\n  da", "stages:\n  data:\n    cmd: echo\n   "):
        lock.write_text(cut)
        with pytest.raises(PipelineError, match=r"dvc\.lock.*: it is cut.* remove it"):
            stage_graph(pipeline)
        with pytest.raises(StageError, match=r"(?s)dvc\.lock.*: it is cut.* remove it"):
            reproduce("data", pipeline, print)
    lock.unlink()
    notes = pipeline / ".dvc/tmp/rwlock"
    notes.write_text("{")
    with pytest.raises(StageError, match=r"(?s)rwlock.*: it is cut.* remove it when no DVC runs"):
        reproduce("data", pipeline, print)
    notes.unlink()
    reproduce("data", pipeline, print)


def test_a_lock_file_that_is_being_written(pipeline: Path) -> None:
    """Beside a running DVC, it may be cut for a moment."""
    reproduce("data", pipeline, print)
    lock = pipeline / "dvc.lock"
    whole = lock.read_text()
    lock.write_text("stages:\n  da")
    timer = threading.Timer(0.3, lock.write_text, [whole])
    timer.start()
    assert "data" in stage_graph(pipeline)
    timer.join()


def test_a_run_that_was_not_noted(pipeline: Path) -> None:
    """DVC makes a folder for the note first, and is killed."""
    (pipeline / "kdm-f.on").touch()  # so that the other student's stage need not run
    stage, runs = "train_student@kdm", pipeline / ".dvc/cache/runs"
    reproduce("data", pipeline, print)
    reproduce(stage, pipeline, print)
    for note in runs.glob("*/*/*"):
        note.unlink()
    (pipeline / "dvc.lock").unlink()
    with pytest.raises(StageError, match=r"(?s)NoneType.*: DVC was killed .*-empty -delete"):
        reproduce(stage, pipeline, print)
    for folder in empty_runs(runs):
        folder.rmdir()
    reproduce(stage, pipeline, print)


def test_students_side_by_side(pipeline: Path) -> None:
    """Each student's stage waits until it sees the other one run."""
    reproduce("data", pipeline, print)
    stages = ["train_student@kdm", "train_student@kdm-f"]
    with ThreadPoolExecutor() as threads:
        for future in [threads.submit(reproduce, stage, pipeline, print) for stage in stages]:
            future.result()
    recorded = YAML(typ="safe").load(pipeline / "dvc.lock")["stages"]
    assert set(recorded) == {"data", *stages}
    lines: list[str] = []
    for stage in stages:
        reproduce(stage, pipeline, lines.append)
    assert [line for line in lines if "didn't change, skipping" in line] == [
        f"Stage '{stage}' didn't change, skipping" for stage in stages]


def test_waits_for_a_busy_lock(pipeline: Path) -> None:
    """For longer than the three seconds after which DVC gives up by itself."""
    lock = zc.lockfile.LockFile(str(pipeline / ".dvc" / "tmp" / "lock"))
    threading.Timer(5, lock.close).start()
    started = time.monotonic()
    reproduce("data", pipeline, print)
    assert time.monotonic() - started > 4.5
    assert (pipeline / "data.txt").exists()


def test_failures(pipeline: Path) -> None:
    with pytest.raises(StageError, match="the file is missing") as mend:
        reproduce("mend", pipeline, print)
    assert mend.value.mendable
    assert not worth_retrying(None, None, run_state(mend.value))  # type: ignore[arg-type]
    with pytest.raises(StageError, match="(?s)working.*-9") as crash:
        reproduce("crash", pipeline, print)
    assert not crash.value.mendable
    assert worth_retrying(None, None, run_state(crash.value))  # type: ignore[arg-type]


def test_stop_leaves_nothing_running(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a process that does not listen."""
    monkeypatch.setattr(repro, "GRACE_S", 1.0)
    monkeypatch.setattr(repro, "LAST_GRACE_S", 0.2)
    stop = threading.Event()
    pid_file = pipeline / "long.pid"

    def stop_when_running() -> None:
        while not (pid_file.exists() and pid_file.read_text().strip()):
            time.sleep(0.05)
        stop.set()

    threading.Thread(target=stop_when_running).start()
    with pytest.raises(StageStopped) as stopped:
        reproduce("long", pipeline, print, stop)
    assert not worth_retrying(None, None, run_state(stopped.value))  # type: ignore[arg-type]
    deadline = time.monotonic() + 5
    while alive(int(pid_file.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(StageStopped, match="not started"):
        reproduce("data", pipeline, print, stop)


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_a_stopped_stage_finishes_what_is_under_way(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    """It alone is asked, behind the shell as well, and what it says is still logged."""
    monkeypatch.setenv("SHELL", shell)
    stop, lines = threading.Event(), []

    def log(line: str) -> None:
        lines.append(line)
        if line == "at work":
            stop.set()

    with pytest.raises(StageStopped):
        reproduce("shard", pipeline, log, stop)
    assert (pipeline / "shard.done").exists()
    assert {"finishing", "finished"} <= set(lines)


def test_timeout(pipeline: Path) -> None:
    lines: list[str] = []
    with pytest.raises(StageTimeout, match="after 4 s") as timeout:
        reproduce("shard", pipeline, lines.append, timeout_s=4)
    assert "finished" in lines
    assert isinstance(timeout.value, TimeoutError)  # what Prefect calls TimedOut
    assert not worth_retrying(None, None, run_state(timeout.value))  # type: ignore[arg-type]


def test_a_dvc_beside_a_running_stage(pipeline: Path) -> None:
    """It says what is busy and who is at it, and spoils nothing."""
    stop, beside = threading.Event(), []

    def log(line: str) -> None:
        if line == "at work":
            beside.append(subprocess.run(
                [sys.executable, "-m", "dvc", "repro", "--single-item", "shard"], cwd=pipeline,
                env=environment(), capture_output=True, text=True))
            stop.set()

    with pytest.raises(StageStopped):
        reproduce("shard", pipeline, log, stop)
    said = beside[0].stdout + beside[0].stderr
    assert beside[0].returncode and "is busy, it is being blocked by:\n  (PID " in said, said


def test_what_a_killed_dvc_leaves(pipeline: Path) -> None:
    """Its entry among those who write is no obstacle to the next one."""
    def kill(line: str) -> None:
        if line == "at work":
            entry, = json.loads((pipeline / ".dvc/tmp/rwlock").read_text())["write"].values()
            os.kill(entry["pid"], signal.SIGKILL)

    with pytest.raises(StageError):
        reproduce("shard", pipeline, kill)
    stop = threading.Event()
    with pytest.raises(StageStopped):
        reproduce("shard", pipeline, lambda line: stop.set() if line == "at work" else None, stop)


def alive(pid: int) -> bool:
    """Whether there is a process that has not ended."""
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_lines() -> None:
    lines = Lines(redraw_s=60)
    assert list(lines.feed(b"one\ntw")) == ["one"]
    assert list(lines.feed(b"o\r\n\x1b[31mred\x1b[0m\n\n")) == ["two", "red"]
    assert list(lines.feed("\r 1 %\r 2 %\rhalf \u00fc".encode()[:-1])) == []
    assert list(lines.feed("\u00fc".encode()[-1:])) == []
    assert list(lines.end()) == ["half \u00fc"]
    assert list(Lines(redraw_s=0).feed(b"\r1 %\r2 %\r3 %")) == ["2 %"]


def test_select() -> None:
    graph = {"a": set(), "b": {"a"}, "c": {"a", "b"}}
    assert select(graph, None) == graph
    assert select(graph, ["c", "a"]) == {"a": set(), "c": {"a"}}
    with pytest.raises(FlowError, match="no stage d; there are a, b, c"):
        select(graph, ["d"])


def test_only_one_run(tmp_path: Path) -> None:
    with only_run(tmp_path), pytest.raises(FlowError, match="another run"), only_run(tmp_path):
        pass
    with only_run(tmp_path):
        pass


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_overrides_that_make_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """params.yaml is as it was: not valid, no such stage with them, or Ctrl-C."""
    project = make_project(tmp_path / "project")
    before = (project / "params.yaml").read_bytes()
    steps = {"students": {"kdm": {"training": {"steps": 7}}}}
    for overrides, stages, message in (
        ({"students": {"kdm": {"training": {"steps": -7}}}}, None, "training.steps"),
        (steps, ["train_student@nobody"], "no stage train_student@nobody"),
        ({**steps, "compute": {"device": "cuda:77"}}, None, "compute.device"),
    ):
        with pytest.raises(KDMError, match=message):
            prepare(project, overrides, stages)
        assert (project / "params.yaml").read_bytes() == before
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(repro, "stage_graph", interrupt)
        prepare(project, steps, None)
    assert (project / "params.yaml").read_bytes() == before
    plan = prepare(project, {"students": {"kdm": {"losses": {"latent": 0.5}}}},
                   ["train_student@kdm"])
    assert plan.graph == {"plan": set(), "train_student@kdm": {"plan"}} and not plan.on_gpu
    assert plan.changes == [Change("students.kdm.losses.latent", MISSING, 0.5)]


def test_tags() -> None:
    """Only what computes takes a slot of the GPU."""
    assert tags_of("teacher", on_gpu=True) == {TAG, GPU_TAG}
    assert tags_of("report", on_gpu=True) == tags_of("teacher", on_gpu=False) == {TAG}


def test_progress_of_this_run_alone(tmp_path: Path) -> None:
    progress = StageProgress("sample_pairs", tmp_path)
    assert progress.read() is None
    file = status_file("sample_pairs", tmp_path)
    file.parent.mkdir(parents=True)
    status = {"stage": "sample_pairs", "pid": 1, "host": "here", "state": "running",
              "updated": "2026-01-01T00:00:00Z",
              "progress": {"name": "pairs", "done": 12, "total": 50, "unit": "pair", "rate": 4.0,
                           "left_s": 9.5, "note": ""}}
    file.write_text(json.dumps({**status, "started": "2026-01-01T00:00:00Z"}))
    assert progress.read() is None
    file.write_text(json.dumps({**status, "started": datetime.now(UTC).isoformat()}))
    found = progress.read()
    assert found is not None and (found.done, found.total) == (12, 50)
    assert key_of("train_student@kdm-F_1") == "kdm-progress-train-student-kdm-f-1"


def test_progress_waits_for_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither while the stage runs nor at its end."""
    monkeypatch.setattr(artifacts, "EVERY_S", 0.01)
    monkeypatch.setattr(artifacts, "LAST_S", 0.1)
    asked, answer = threading.Event(), threading.Event()

    def update(progress: StageProgress) -> None:
        asked.set()
        answer.wait(30)

    monkeypatch.setattr(StageProgress, "update", update)
    progress, began = StageProgress("sample_pairs", tmp_path), time.monotonic()
    with progress:
        assert asked.wait(10)
    assert time.monotonic() - began < 10
    answer.set()
    progress.thread.join()


def test_progress_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the context of the run, to its end; an error of the server's client does not end it."""
    shown: list[tuple[str, int]] = []
    run = ContextVar("run", default="none")
    monkeypatch.setattr(artifacts, "EVERY_S", 0.01)
    progress = ProgressStatus(name="pairs", done=1, total=9, unit="pair", rate=1.0)
    monkeypatch.setattr(StageProgress, "read", lambda _: progress)

    def show(_: StageProgress, found: ProgressStatus) -> None:
        shown.append((run.get(), found.done))
        if len(shown) == 1:
            raise RuntimeError("the client has been closed")

    monkeypatch.setattr(StageProgress, "show", show)
    run.set("mine")
    with StageProgress("sample_pairs", tmp_path):
        while len(shown) < 2:
            time.sleep(0.01)
        progress = progress.model_copy(update={"done": 9})
    assert shown[0] == ("mine", 1) and shown[-1] == ("mine", 9)


def test_servers_that_cannot_be_used() -> None:
    with temporary_settings({PREFECT_API_URL: "http://someone:secret@127.0.0.1:1/api"}):
        with pytest.raises(ServerError, match="no Prefect server answers") as error:
            require_server()
        assert "secret" not in str(error.value)
    with (temporary_settings({PREFECT_API_URL: "http://someone:secret@host:x/api"}),
          pytest.raises(ServerError, match="is no URL: http") as error):
        require_server()
    assert "secret" not in str(error.value)
    for old in ("3.7.9", "2.20.3", "4.0.0"):
        with pytest.raises(ServerError, match=f"the Prefect server is {re.escape(old)}"):
            require_version(old)
    for new in (prefect.__version__, "3.99.0"):
        require_version(new)


def test_flow_without_its_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, at once, and nothing is started."""
    monkeypatch.setattr(flow, "distill", None)
    with (temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}),
          pytest.raises(SystemExit, match="^error: PREFECT_API_URL is http://127.0.0.1:1/api, ")):
        flow.main()


def test_its_own_server_has_time_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a busy machine, unless somebody has said how long."""
    waits: list[int] = []
    monkeypatch.setattr(flow, "distill", lambda: waits.append(
        get_current_settings().server.ephemeral.startup_timeout_seconds))
    flow.main()
    with temporary_settings({PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 7}):
        flow.main()
    assert waits == [flow.START_S, 7] and flow.START_S > 60


def test_a_worker_whose_flow_run_ends_while_it_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = subprocess.Popen(["sleep", "60"])
    gone = psutil.Process(run.pid)
    run.kill()
    run.wait()
    monkeypatch.setattr(deploy, "programs", lambda _: [gone])
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"],
                              start_new_session=True)
    deploy.stop(worker)
    assert worker.returncode is not None


def test_no_module_hides_another() -> None:
    """Prefect puts pipeline/ first on the path."""
    names = {path.stem for path in (ROOT / "pipeline").glob("*.py")}
    assert not names & {"dvc", "prefect", "stages", "kdm_core", "torch", "typer", "yaml"}
