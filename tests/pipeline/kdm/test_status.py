"""The status file of a stage, and `kdm status`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click import unstyle
from ruamel.yaml import YAML
from typer.testing import CliRunner, Result

from kdm_core.errors import DataError, KDMError
from kdm_core.pairs.reference import Reference
from pipeline.kdm import status as status_cli
from pipeline.kdm.cli import app
from pipeline.project.unfinished import kept_work, pairs_there
from pipeline.runtime import paths, status
from pipeline.runtime.progress import Progress
from pipeline.runtime.status import Status, read_status, recorded, status_file
from tests.support.project import ROOT, copy_project, environment, python

STAGE = "sample_pairs"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = copy_project(finished, tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


def mendable(error: BaseException) -> str | None:
    return str(error) if isinstance(error, KDMError) else None


def found() -> Status:
    seen = read_status(Path(), STAGE)
    assert seen is not None
    return seen


def kdm_status(*options: str) -> Result:
    return CliRunner().invoke(app, ["status", *options])


def rows() -> dict[str, dict[str, Any]]:
    """The stages of `kdm status --json`, by name."""
    result = kdm_status("--json")
    assert result.exit_code == 0, result.output
    return {row["stage"]: row for row in json.loads(result.stdout)["stages"]}


def edit(key: str, **values: Any) -> None:
    """Change values in a section of params.yaml."""
    path, yaml = Path("params.yaml"), YAML()
    params = yaml.load(path)
    params[key].update(values)
    with path.open("w") as file:
        yaml.dump(params, file)


@pytest.mark.parametrize("error, state, text", [
    (None, "done", None),
    (KDMError("mend this"), "failed", "mend this"),
    (ValueError("odd"), "failed", "ValueError: odd"),
    (KeyboardInterrupt(), "stopped", None),
    (SystemExit(143), "stopped", None),
    (SystemExit(0), "done", None),
    (SystemExit(3), "failed", "ended with exit code 3"),
])
def test_how_a_run_ends(
    folder: Path, error: BaseException | None, state: str, text: str | None
) -> None:
    ended: BaseException | None = None
    try:
        with recorded(STAGE, mendable):
            assert found().state == "running"
            if error is not None:
                raise error
    except BaseException as raised:
        ended = raised
    assert ended is error
    assert (found().state, found().error, found().pid) == (state, text, os.getpid())
    assert status.current is None


def test_progress_is_written_now_and_then(folder: Path) -> None:
    with recorded(STAGE, mendable), Progress("pairs", 1000, "pair", 100) as progress:
        assert status.current is not None
        first = status_file(STAGE).stat().st_mtime_ns
        for _ in range(100):
            progress.update(1)
        assert status_file(STAGE).stat().st_mtime_ns == first  # less than a second has gone by
        status.current.written -= 2
        progress.update(100, "well")
        seen = found().progress
        assert seen is not None
        assert (seen.name, seen.done, seen.total, seen.unit) == ("pairs", 300, 1000, "pair")
        assert seen.note == "well"
        assert seen.left_s == pytest.approx(700 / seen.rate, abs=0.1)
    assert found().progress is not None
    assert not list(status_file(STAGE).parent.glob(".*"))


def test_a_disk_that_cannot_be_written_does_not_end_a_stage(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "data/work").mkdir(parents=True)
    (folder / "data/work/status").write_text("in the way")
    with recorded(STAGE, mendable), Progress("pairs", 3, "pair") as progress:
        progress.update(3)
    said = capsys.readouterr().err
    assert said.count("cannot be written") == 1
    assert "data/work/status/sample_pairs.json" in said


def test_time_of_stopped_runs_counts_for_the_same_work_only(folder: Path) -> None:
    def run(work: str, seconds: float, error: KDMError | None = None) -> Status:
        try:
            with recorded(STAGE, mendable):
                assert status.current is not None
                status.current.begin_work(work)
                status.current.began -= seconds
                if error is not None:
                    raise error
        except KDMError:
            pass
        return found()

    run("a", 10, KDMError("disk full"))
    assert run("a", 20, KDMError("disk full")).earlier_s == pytest.approx(10, abs=1)
    last = run("a", 5)
    assert last.earlier_s == pytest.approx(30, abs=1)
    assert last.complete_s == pytest.approx(35, abs=1)
    again = run("a", 1, KDMError("disk full"))
    assert again.earlier_s == 0
    assert again.complete_s == pytest.approx(35, abs=1)
    assert run("b", 1).earlier_s == 0


def test_processes_that_train_together(folder: Path) -> None:
    with pytest.raises(SystemExit), recorded(STAGE, mendable):
        # As processes of their own do it; the first writes the progress.
        for rank in (0, 1):
            with pytest.raises(KDMError), recorded(STAGE, mendable, rank):
                with Progress("pairs", 10, "pair") as progress:
                    progress.update(rank + 1)
                raise KDMError(f"rank {rank}")
            assert found().state == "running"
        status_file(STAGE).write_text(
            found().model_copy(update={"pid": os.getpid() + 1}).model_dump_json())
        raise SystemExit(1)
    assert (found().state, found().error) == ("failed", "rank 0")
    seen = found().progress
    assert seen is not None and seen.done == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"stage": 3}', b"\xff"])
def test_a_damaged_file_counts_as_none(folder: Path, content: bytes) -> None:
    status_file(STAGE).parent.mkdir(parents=True)
    status_file(STAGE).write_bytes(content)
    assert read_status(folder, STAGE) is None


def test_readers_do_without_torch_and_parameters() -> None:
    code = ("import sys, pipeline.runtime.log, pipeline.runtime.status, pipeline.kdm.status, "
            "pipeline.project.staleness, pipeline.project.unfinished, kdm_core.pairs.location\n"
            "assert not {'torch', 'pipeline.params'} & set(sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_a_pipeline(folder: Path) -> None:
    result = kdm_status()
    assert result.exit_code == 1
    assert result.stderr == (f"error: {folder / 'dvc.yaml'} is missing, so this is no project: run "
                             "this in the folder of one, or make one with `kdm new DIR`\n")


def test_what_is_done_and_what_is_stale(project: Path) -> None:
    result = kdm_status()
    assert result.exit_code == 0, result.output
    assert "pairs      2,320 of 2,320 (29 of 29 shards) in data/pairs/pairs.zarr" in result.stdout
    assert "time left  none, all is done" in result.stdout
    assert {row["state"] for row in rows().values()} == {"done"}

    edit("evaluation", bootstrap=21)
    (project / "data/students/kdm/config.json").unlink()
    found = rows()
    assert [found[name]["state"] for name in ("teacher", "train_student@kdm-f")] == ["done"] * 2
    assert found["evaluate@kdm-f"]["why"] == {"parameters": ["evaluation.bootstrap"]}
    assert found["train_student@kdm"]["why"] == {"result modified": ["data/students/kdm"]}
    assert found["evaluate@kdm"]["after"] == ["train_student@kdm"]
    text = kdm_status().stdout
    assert "stale        parameters (evaluation.bootstrap)\n" in text
    assert "time left  about" in text


def test_work_of_other_parameters_is_not_counted(finished: Path, folder: Path) -> None:
    """What is unfinished is the work that the last run began; else, the finished store is there."""
    shutil.copytree(finished / paths.PAIRS, paths.PAIRS)
    for key in ("mine", "other"):
        shutil.copytree(paths.PAIRS, paths.WORK / STAGE / key / "pairs.zarr")
        for step in (8, 9):
            (paths.WORK / STAGE / key / f"student-{step + len(key):08}.safetensors").touch()
    shutil.rmtree(paths.WORK / STAGE / "mine/pairs.zarr/index/c")
    last = Status(stage=STAGE, pid=1, host="here", state="stopped", started="", updated="",
                  work="mine")

    def there(**changed: str) -> tuple[str, int] | None:
        pairs = pairs_there(last.model_copy(update=changed))
        return pairs and (pairs.location, pairs.done)

    assert there() == (str(paths.WORK / STAGE / "mine/pairs.zarr"), 0)
    for changed in ({"state": "done"}, {"work": "neither"}):
        assert there(**changed) == (str(paths.PAIRS), 2320)
    trains = last.model_copy(update={"stage": "teacher"})
    (paths.WORK / STAGE).rename(paths.WORK / "teacher")
    assert kept_work("teacher", None, trains) == "student at step 13"
    assert kept_work("teacher", None, trains.model_copy(update={"work": None})) == ""


def test_pairs_that_lie_elsewhere(folder: Path) -> None:
    reference = Reference(location="../../../elsewhere", fingerprint="0" * 64, content="0" * 64,
                          pairs=7)
    paths.PAIRS.mkdir(parents=True)
    reference.save(paths.PAIRS)
    pairs = pairs_there(None)
    assert pairs is not None and (pairs.location, pairs.done) == ("elsewhere", 7)
    (paths.PAIRS / "reference.json").write_text('{"pairs": 7}')
    with pytest.raises(DataError, match="no reference to a pair store"):
        pairs_there(None)


@pytest.fixture
def sampling(project: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`dvc repro sample_pairs` of many more pairs, under way."""
    edit("pairs", train=200_000)
    process = subprocess.Popen([sys.executable, "-m", "dvc", "repro", STAGE], env=environment(),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               start_new_session=True)
    limit = time.monotonic() + 60
    while (seen := read_status(project, STAGE)) is None or seen.progress is None or (
            seen.state != "running" or seen.progress.rate == 0):
        assert time.monotonic() < limit and process.poll() is None
        time.sleep(0.1)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_running_then_killed_then_failed(
    project: Path, sampling: subprocess.Popen[bytes]
) -> None:
    row = rows()[STAGE]
    assert row["state"] == "running"
    assert row["pid"] == found().pid and row["pid"] != sampling.pid
    assert row["progress"]["total"] == 200_320 and row["left_s"] > 0
    text = kdm_status().stdout
    assert f"pid {row['pid']} since" in text and " left" in text
    assert rows()["filter_pairs"]["after"] == [STAGE]
    assert sampling.poll() is None  # looking did it no harm

    os.killpg(sampling.pid, signal.SIGKILL)
    sampling.wait()
    row = rows()[STAGE]
    assert row["state"] == "interrupted" and row["detail"].startswith("killed; kept: ")
    document = json.loads(kdm_status("--json").stdout)
    there = document["pairs"]
    assert there["location"].startswith("data/work/sample_pairs/")
    shards = len(list(project.glob("data/work/sample_pairs/*/pairs.zarr/index/c/*")))
    assert 0 < there["shards_done"] == shards < there["shards"] == 2504
    assert document["left_unknown"] == [] and document["left_s"] > 0

    edit("pairs", states=40)
    done = python(project, "stages.sample_pairs")
    assert done.returncode == 1
    row = rows()[STAGE]
    assert row["state"] == "failed" and "pairs.states: 40 states cannot be kept" in row["error"]
    assert row["error"] in done.stderr


def test_verdicts_are_told(folder: Path) -> None:
    """Those that the evaluations left, and which of them are of an earlier run."""
    def write(name: str, document: Any) -> None:
        path = folder / f"data/evaluation/{name}/evaluation.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document))

    for name, words in {"a": {"teacher": "passed", "student": "failed"},
                        "b": {"pairs": "passed", "student": "poor"}}.items():
        write(name, {"verdicts": {who: {"word": word} for who, word in words.items()}})
    write("old", {"student": {"mse": {"value": 1.0}}})
    rows = [status_cli.Row(f"evaluate@{name}", state, "")
            for name, state in (("a", "done"), ("b", "stale"), ("old", "done"), ("c", "never run"))]
    found = status_cli.verdicts(rows)
    assert found == {"a": {"teacher": "passed", "student": "failed", "current": True},
                     "b": {"pairs": "passed", "student": "poor", "current": False}}
    told = [" ".join(line.split()) for line in map(unstyle, status_cli.tell(found))]
    assert told == ["verdict teacher passed", "verdict a failed",
                    "verdict stored pairs passed (of an earlier run)",
                    "verdict b poor (of an earlier run)"]
    for damaged in ([], {"verdicts": {"student": "poor"}}):
        write("a", damaged)
        with pytest.raises(DataError, match="a/evaluation.json is damaged"):
            status_cli.verdicts(rows)


def test_looking_does_not_disturb_a_run(project: Path) -> None:
    edit("data", test_fraction=0.25)
    process = subprocess.Popen([sys.executable, "-m", "dvc", "repro", "prepare_data"],
                               env=environment(), stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
    states = []
    while process.poll() is None:
        states.append(rows()["prepare_data"]["state"])
        time.sleep(0.2)
    assert process.returncode == 0, process.communicate()[0]
    assert "running" in states
    assert (rows()["prepare_data"]["state"], rows()["teacher"]["why"]) == (
        "done", {"data": ["data/dataset"]})
    locks = json.loads((project / ".dvc/tmp/rwlock").read_text())
    assert not locks.get("write") and not locks.get("read")  # none of them is ours
