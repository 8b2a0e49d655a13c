"""One run of a stage at a time, ending with its DVC, recorded as what it was."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from kdm_core.errors import KDMError
from pipeline.runtime import guard
from pipeline.runtime.guard import holder, lock_file, only_run
from tests.support.project import ROOT

POLL_S = 0.05


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a short patience."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(guard, "WAIT_S", 0.3)
    monkeypatch.setattr(guard, "POLL_S", POLL_S)
    return tmp_path


def silent(text: str) -> None:
    raise AssertionError(f"said: {text}")


def program(code: str, *prefix: str, **environment: str) -> subprocess.Popen[str]:
    """A Python program with this project's modules, in the current folder."""
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, start_new_session=True)


@contextmanager
def other_run(stage: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that runs a stage."""
    other = program("import time; from pipeline.runtime.guard import only_run\n"
                    f"with only_run({stage!r}, print): print('in', flush=True); time.sleep(60)")
    assert other.stdout is not None
    assert other.stdout.readline() == "in\n"
    try:
        yield other
    finally:
        other.kill()
        other.wait()


def test_a_second_run_says_for_whom_it_waits_and_gives_up() -> None:
    said: list[str] = []
    with other_run("teacher") as other:
        with (pytest.raises(KDMError, match=rf"\(pid {other.pid} on .*stop it"),
              only_run("teacher", said.append)):
            pytest.fail("two at once")
        assert len(said) == 1
        assert f"pid {other.pid} on" in said[0]
        assert holder("teacher") == other.pid
        with only_run("reference", silent):  # of another stage
            assert holder("reference") == os.getpid()


def test_the_lock_goes_with_a_killed_holder() -> None:
    with other_run("teacher"):
        pass
    assert holder("teacher") is None
    assert lock_file("teacher").read_text()  # it says still who it was
    with only_run("teacher", silent):
        assert holder("teacher") == os.getpid()
    assert holder("teacher") is None
    assert holder("never-run") is None


def test_a_second_run_goes_on_when_the_first_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "WAIT_S", 30.0)
    said: list[str] = []
    with other_run("teacher") as other:
        def say(text: str) -> None:
            said.append(text)
            other.kill()

        with only_run("teacher", say):
            assert holder("teacher") == os.getpid()
    assert len(said) == 1


def ask(times: int) -> bool:
    return all(holder("teacher") is None for _ in range(times))


def test_those_who_ask_do_not_take_each_other_for_a_run() -> None:
    with only_run("teacher", silent):
        pass
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(ask, [2000, 2000]) == [True, True]


def test_a_folder_that_cannot_be_locked_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "data").mkdir()
    (folder / "data/work").write_text("no folder")
    with (pytest.raises(KDMError, match=r"data/work/locks/teacher cannot be locked \(Not a dir"),
          only_run("teacher", silent)):
        pytest.fail("locked nothing")
    (folder / "data/work").unlink()

    def no_locks(descriptor: int, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with (pytest.raises(KDMError, match=r"No locks available.*file system with locks"),
          only_run("teacher", silent)):
        pytest.fail("locked nothing")


# As DVC runs a command: a shell of it, which may stay between the two.
DVC = """
import os, subprocess, sys, time
done = subprocess.Popen(["/bin/sh", "-c", {command!r}], env=os.environ | {{"DVC_STAGE": "teacher"}})
{then}
"""
STAGE = """
import os, time
time.sleep({imports})
from pipeline.runtime import guard
guard.POLL_S = {poll}
guard.end_with_dvc()
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("shell", ["exec ", "", "true; "], ids=["exec", "plain", "stays"])
def test_a_stage_ends_with_its_dvc(folder: Path, shell: str) -> None:
    (folder / "stage.py").write_text(STAGE.format(imports=0, poll=POLL_S))
    dvc = program(DVC.format(command=f"{shell}{sys.executable} stage.py; true", then="done.wait()"))
    assert dvc.stdout is not None
    stage = psutil.Process(int(dvc.stdout.readline()))
    time.sleep(3 * POLL_S)
    assert stage.is_running()
    dvc.send_signal(signal.SIGKILL)
    stage.wait(5)
    dvc.wait()


def test_a_stage_whose_dvc_was_killed_while_it_started_ends(folder: Path) -> None:
    (folder / "stage.py").write_text(STAGE.format(imports=0.3, poll=POLL_S))
    dvc = program(DVC.format(command=f"{sys.executable} stage.py", then="os._exit(1)"))
    assert dvc.stdout is not None
    assert dvc.stdout.read() == ""  # the pipe is closed when all have ended
    dvc.wait()


def test_without_dvc_a_stage_goes_on() -> None:
    left = {name: value for name, value in os.environ.items() if name != guard.DVC_MARK}
    done = subprocess.run(
        [sys.executable, "-c",
         "from pipeline.runtime.guard import end_with_dvc; end_with_dvc(); print(1)"],
        env={**left, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.stdout == "1\n"


LATE = """
import shutil, sys
from pathlib import Path
from kdm_core.errors import KDMError
import stages
from pipeline.runtime.guard import Code
name = {name!r}
late = Code(["kdm_core.errors", name])
Path({file!r}).write_text("1")
try:
    late.require_settled()
    print("settled")
    Code([name])
except KDMError as error:
    print(error)
"""


@pytest.mark.parametrize("loaded", [True, False])
def test_code_that_is_edited_before_it_is_imported_is_named(folder: Path, loaded: bool) -> None:
    """What was imported at the start may be edited: this program has the code that was planned."""
    for package in ("kdm_core", "pipeline", "stages"):
        shutil.copytree(ROOT / package, folder / package,
                        ignore=shutil.ignore_patterns("__pycache__"))
    name = "kdm_core.errors" if loaded else "kdm_core.samples"
    file = folder / f"{name.replace('.', '/')}.py"
    output, _ = program(LATE.format(name=name, file=str(file)), PYTHONPATH=str(folder)
                        ).communicate()
    assert output == "settled\n" * loaded + f"{file} changed while this stage ran: run again\n"


def test_leaving_writes_what_was_said() -> None:
    code = ("import atexit; from pipeline.runtime.guard import leave\n"
            "atexit.register(print, 'late'); print('said'); leave()")
    done = program(code)
    assert done.communicate()[0] == "said\n"
    assert done.returncode == 0
