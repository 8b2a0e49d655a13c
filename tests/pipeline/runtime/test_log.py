"""What stage programs say, as text and as JSON."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdm_core.errors import KDMError, adapted
from pipeline.reporting import conditions
from pipeline.reporting.records import Timing
from pipeline.runtime import log, paths, progress
from pipeline.runtime.progress import Progress
from pipeline.runtime.runner import Stage, is_first
from tests.support.project import python

PROGRAM = """
import logging, sys, warnings
from kdm_core.errors import KDMError
from pipeline.runtime.progress import Progress
from pipeline.runtime.runner import run

def main(stage):
    stage.say("a message\\nof two lines")
    warnings.warn("a warning")
    logging.getLogger("some.library").error("a complaint")
    with Progress("things", 3, "thing", 1) as progress:
        progress.update(2, "all of them")
    if "mend" in sys.argv:
        raise KDMError("mend this")
    1 / 0

run("prepare_data", main)
"""


@pytest.fixture(autouse=True)
def unspoken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "speaker", None)
    monkeypatch.delenv(log.VARIABLE, raising=False)


def test_what_an_earlier_run_has_done_is_no_speed_of_this_one(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress("steps", 10_000, "step") as counted:
        now[0] += 60  # reading the checkpoint
        counted.resume(9000)
        now[0] += 2
        counted.reach(9010)
        figures = counted.figures()
    assert (figures.done, figures.rate, figures.left_s) == (9010, 5.0, 198.0)


def run_program(project: Path, *arguments: str, **variables: str) -> tuple[int, list[str]]:
    (project / "program.py").write_text(PROGRAM)
    done = python(project, "program", *arguments, **variables)
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()


def test_every_line_is_an_object(project: Path) -> None:
    code, lines = run_program(project, KDM_LOG="json")
    said = [json.loads(line) for line in lines]
    assert code == 1
    assert [(one["event"], one["level"]) for one in said] == [
        ("message", "info"), ("warning", "warning"), ("warning", "warning"), ("message", "info"),
        ("progress", "info"), ("crash", "critical")]
    assert {one["stage"] for one in said} == {"prepare_data"}
    message, warned, complained, resumed, progress, crash = said
    assert message["message"] == "a message\nof two lines"
    assert "a warning" in warned["message"]
    assert (complained["message"], complained["logger"]) == ("a complaint", "some.library")
    assert resumed["message"] == "things: going on after 1 things of 3"
    assert (progress["done"], progress["total"], progress["unit"]) == (3, 3, "thing")
    assert progress["rate"] > 0 and progress["left_s"] == 0 and progress["note"] == "all of them"
    assert "ZeroDivisionError" in crash["message"] and "in main\n" in crash["traceback"]
    # Nobody could mend that, so a flow may try again.
    assert not any(log.is_error(line, "prepare_data") for line in lines)


def test_what_can_be_mended_is_the_last_line(project: Path) -> None:
    code, lines = run_program(project, "mend")
    assert code == 1
    assert lines[0] == "[prepare_data] a message"
    assert lines[-1] == "[prepare_data] error: mend this"
    assert [log.is_error(line, "prepare_data") for line in lines] == [False] * (len(lines) - 1) + [
        True]


@pytest.mark.parametrize("format", ["json", "text"])
def test_what_can_be_mended_is_recognised(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(log.VARIABLE, format)
    monkeypatch.setattr(log, "speaker", "prepare_data")
    line = log.failure("mend this")
    assert line.startswith("{") == (format == "json")
    assert log.is_error(line, "prepare_data") and not log.is_error(line, "teacher")
    assert log.readable(line) == "[prepare_data] error: mend this"


def test_an_unknown_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(log.VARIABLE, "xml")
    with pytest.raises(KDMError, match="no log format 'xml'; set it to json or text"):
        log.set_up("teacher")
    assert log.failure("so it is") == "[teacher] error: so it is"


def entry(message: str, event: log.Event, **fields: Any) -> str:
    return log.entry(message, event, **fields)


@given(st.text(), st.sampled_from(list(log.LEVELS)))
def test_any_message_is_one_line_and_can_be_read(message: str, event: log.Event) -> None:
    line = entry(message, event)
    assert len(line.split("\n")) == 1
    assert json.loads(line)["message"] == message
    assert message in log.readable(line)
    assert log.is_error(line, "") is False


@given(st.one_of(st.text(), st.text().map('{"time": '.__add__),
                 st.dictionaries(st.text(), st.integers()).map(json.dumps)))
def test_lines_of_others_stay_as_they_are(line: str) -> None:
    assert log.readable(line) == line
    assert not log.is_error(line, "teacher")


def test_what_the_library_adapts_is_a_line_and_a_note(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    stage = Stage("prepare_data")
    with stage.noting():
        adapted("10 files of 100 are used")
        adapted("10 files of 100 are used")
        with pytest.warns(UserWarning, match="another matter"):
            warnings.warn("another matter", stacklevel=1)
    assert stage.notes == ["10 files of 100 are used"]
    assert capsys.readouterr().err.count("[prepare_data] note: 10 files of 100 are used") == 1
    stage.write_timing()
    timing = Timing.model_validate_json((paths.TIMINGS / "prepare_data.json").read_text())
    assert conditions.adaptations({"prepare_data": timing}) == {
        "notes": {"prepare_data": "10 files of 100 are used"}}


def test_of_processes_that_train_together_the_first_one_says_it(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert is_first()  # of no others
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a-training")
    assert not is_first()
    monkeypatch.setenv("RANK", "0")
    assert is_first()
