"""Stages that are stopped say so in one line, and those that go on say from where."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdm_core.training import loop
from pipeline.runtime.progress import Progress
from pipeline.runtime.runner import Stage
from pipeline.runtime.status import recorded
from stages import reference, teacher, train_student
from tests.support.project import edit, python

# A program that was started in the background ignores the signal.
INTERRUPT = ("signal.signal(signal.SIGINT, signal.default_int_handler); "
             "os.kill(os.getpid(), signal.SIGINT); time.sleep(60)")
LINE = "stopped by Ctrl-C: what is complete is kept, the same command goes on from there"
STOPPED = f"""
import os, signal, time
from pipeline.runtime.runner import run

def main(stage):
    {INTERRUPT}

run("prepare_data", main)
"""


def test_a_stage_that_is_interrupted_says_one_line(project: Path) -> None:
    (project / "program.py").write_text(STOPPED)
    done = python(project, "program")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"[prepare_data] {LINE}\n")


def test_so_does_one_that_still_reads_its_code(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(f"import os, signal, time\nimport stages\n{INTERRUPT}\n")
    done = python(tmp_path, "program")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{LINE}\n")


def test_other_errors_keep_their_traceback(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import stages\n1 / 0\n")
    done = python(tmp_path, "program")
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr


def test_where_a_run_goes_on_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("kdm", 2600, "step") as progress:
        progress.resume(2000)  # the first phase is complete
        progress.resume(2100)
        progress.reach(2101)
        progress.reach(2102)
    assert capsys.readouterr().err == "kdm: going on after 2,100 steps of 2,600\n"
    with Progress("pairs", 720, "pair", 80):
        assert capsys.readouterr().err == "pairs: going on after 80 pairs of 720\n"
    with Progress("kdm", 2600, "step") as progress:
        progress.resume(0)
        progress.reach(1)
    assert capsys.readouterr().err == ""


def often(values: Any) -> None:
    values["reference"]["classifier"]["training"]["checkpoint_every"] = 10
    values["teacher"]["training"]["steps"] = 90


# kdm-f has a phase of 200 steps, with a checkpoint every ten, and one of 60.
STAGES: dict[str, tuple[Callable[[Stage], None], int, str, int]] = {
    "reference": (reference.main, 3, "classifier: going on after 30 steps of 60", 60),
    "teacher": (teacher.main, 2, "teacher: going on after 40 steps of 90", 90),
    "train_student@kdm-f": (lambda stage: train_student.main(stage, "kdm-f"), 20,
                            "kdm-f: going on after 210 steps of 260", 260)}


@pytest.mark.parametrize("name", STAGES)
def test_a_training_that_goes_on_says_from_which_step(
    name: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    edit(project, often)
    main, checkpoints, line, steps = STAGES[name]
    stored, store = 0, loop.store

    def interrupted(*arguments: Any) -> None:
        nonlocal stored
        stored += 1
        store(*arguments)
        if stored == checkpoints:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "store", interrupted)
        main(Stage(name))
    capsys.readouterr()
    with recorded(name, lambda error: None):
        main(Stage(name))
    assert [one for one in capsys.readouterr().err.splitlines() if "going on" in one] == [line]
    progress = json.loads(Path(f"data/work/status/{name}.json").read_text())["progress"]
    assert (progress["done"], progress["total"], progress["unit"]) == (steps, steps, "step")
