"""Access to DVC: the graph, stages side by side, failures, and that nothing is left running."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zc.lockfile  # type: ignore[import-untyped]
from ruamel.yaml import YAML

from pipeline import repro
from pipeline.flow import FlowError, only_run, select, worth_retrying
from pipeline.repro import (
    Lines,
    PipelineError,
    StageError,
    StageStopped,
    reproduce,
    stage_graph,
)
from tests.project import ROOT, make_project, make_repository

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
  long:
    cmd: (trap '' TERM; echo $$ > long.pid; sleep 60; sleep 60) & sleep 60
"""


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
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
        "prepare_data", "reference", "teacher", "sample_pairs", "filter_pairs", "report",
        *(f"{stage}@{name}" for stage in ("train_student", "evaluate", "study")
          for name in students)}
    assert graph["prepare_data"] == set()
    assert graph["train_student@kdm"] == {"teacher", "sample_pairs", "filter_pairs"}
    assert {"teacher", "train_student@kdm-f"} <= graph["evaluate@kdm-f"]
    assert "train_student@kdm" not in graph["evaluate@kdm-f"]
    assert {"evaluate@kdm", "evaluate@kdm-f"} <= graph["report"]
    order = list(graph)
    assert all(order.index(need) < order.index(stage) for stage in graph for need in graph[stage])


def test_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"dvc\.yaml is missing"):
        stage_graph(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    with pytest.raises(PipelineError, match="DVC"):
        stage_graph(tmp_path)


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
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    with only_run(tmp_path), pytest.raises(FlowError, match="another run"), only_run(tmp_path):
        pass
    with only_run(tmp_path):
        pass


def test_no_module_hides_another() -> None:
    """Prefect puts pipeline/ first on the path."""
    names = {path.stem for path in (ROOT / "pipeline").glob("*.py")}
    assert not names & {"dvc", "prefect", "stages", "kdm_core", "torch", "typer", "yaml"}
