"""The project that a drill breaks: its stages as programs, and what they must end with."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from ruamel.yaml import YAML

from pipeline.project.dvc_records import CUT_LOCK, CUT_RUN, CUT_RWLOCK, empty_runs, with_remedy
from tests.support.project import copy_project, edit, environment
from tests.support.waiting import wait_until

SAME = "same bytes"
MENDED = "clear error, then same bytes"
CUT = "DVC's records cut, then as advised, same bytes"
LIMIT_S = 300.0

# The filter measures something, and there are pairs enough to be interrupted at.
FILTER = {"copies": [{"quantile": 0.2}]}
# Measurements of time are no results.
VOLATILE = ("stages", "timings", "durations", "images_per_s", "speedup", "wall_s")
NO_RESULTS = ("reports/report.html", "reports/timings/")

Drill = Callable[["Bench", Random, int], Iterator[str]]
"""Tries a fault a number of times; yields the outcome of each."""


class Failure(AssertionError):
    """A fault ended otherwise than it may."""


class Impossible(Exception):
    """This machine does not let us make the fault."""


class Bench:
    """A copy of a finished project, with the stages as programs.

    A context, at whose end none of the programs is left.

    Attributes:
        project: its folder.
        log: what all programs printed, one after another.
    """

    def __init__(self, finished: Path, folder: Path, log: Path | None = None) -> None:
        """
        Args:
            finished: a project whose pipeline has run; it is not changed.
            folder: where the copy shall lie.
            log: where the log lies; beside the copy by default.
        """
        folder.mkdir(parents=True)
        self.project = copy_project(finished, folder / "project")
        self.log = log or folder / "log.txt"
        self.log.touch()
        self.started: list[subprocess.Popen[bytes]] = []
        self.definitions: dict[str, Any] = YAML(typ="safe").load(
            self.project / "dvc.yaml")["stages"]

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *reason: object) -> None:
        for process in self.started:
            if process.poll() is None:
                kill(process)

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start `python ARGUMENTS` in the project, as the leader of a group of its own."""
        with self.log.open("ab") as log:
            log.write(f"$ python {' '.join(arguments)}\n".encode())
            log.flush()
            self.started.append(subprocess.Popen(
                [sys.executable, *arguments], cwd=self.project, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
                env=environment(OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1", **variables)))
        return self.started[-1]

    def start_stage(self, stage: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start a stage alone, as DVC starts it."""
        name, _, key = stage.partition("@")
        return self.start("-m", f"stages.{name}", *([key] if key else []), **variables)

    def start_dvc(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `dvc repro`."""
        return self.start("-m", "dvc", "repro", *arguments)

    def complete(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for a program that must succeed."""
        if process.wait(LIMIT_S) != 0:
            raise Failure(f"exit code {process.returncode}: {self.said()[-2000:]}")

    def said(self, since: int = 0) -> str:
        """What programs have printed since the log had that many bytes."""
        return self.log.read_bytes()[since:].decode(errors="replace")

    def mark(self) -> int:
        """How many bytes the log has now."""
        return self.log.stat().st_size

    def outputs(self, stage: str) -> list[Path]:
        """What DVC says that a stage makes, and removes before it runs the stage."""
        name, _, key = stage.partition("@")
        entry = self.definitions[name]
        entry = entry.get("do", entry)
        found = [item if isinstance(item, str) else next(iter(item))
                 for kind in ("outs", "metrics", "plots") for item in entry.get(kind, [])]
        return [self.project / text.replace("${key}", key) for text in found]

    def stages(self) -> list[str]:
        """All stages, in an order in which they can run."""
        students = YAML(typ="safe").load(self.project / "params.yaml")["students"]
        return [f"{name}@{key}" if "foreach" in entry else name
                for name, entry in self.definitions.items()
                for key in (students if "foreach" in entry else [""])]

    def remove_outputs(self, stage: str) -> None:
        """What DVC does before it runs a stage."""
        for path in self.outputs(stage):
            remove(path)

    def mend_records(self, process: subprocess.Popen[bytes], mark: int) -> bool:
        """Wait for a DVC that may find its own records cut, and do what `kdm doctor` advises then.

        Args:
            mark: how long the log was when the program was started.

        Returns:
            Whether they were.

        Raises:
            Failure: it failed for something else.
        """
        if process.wait(LIMIT_S) == 0:
            return False
        said = with_remedy(self.said(mark))
        to_remove = {CUT_LOCK: [self.project / "dvc.lock"],
                     CUT_RWLOCK: [self.project / ".dvc/tmp/rwlock"],
                     CUT_RUN: empty_runs(self.project / ".dvc/cache/runs")}
        cut = next((paths for advice, paths in to_remove.items() if said.endswith(advice)), [])
        if not cut:
            raise Failure(f"exit code {process.returncode}: {said[-2000:]}")
        for path in cut:
            remove(path)
        self.complete(self.start_dvc())
        return True

    def clear(self, stage: str) -> None:
        """Take from a stage all that it has done, and all that it would not do again."""
        self.remove_outputs(stage)
        for name in (stage, "kept_pairs", "features"):
            remove(self.project / "data/work" / name)

    def start_over(self) -> None:
        """Take from the project all that its pipeline has done."""
        for name in ("data", "reports", "dvc.lock", ".dvc/cache", ".dvc/tmp"):
            remove(self.project / name)

    def results(self, *stages: str) -> dict[str, str]:
        """Hashes of all that some stages have made (all of them unless named), times left out."""
        found: dict[str, str] = {}
        for stage in stages or self.stages():
            for path in self.outputs(stage):
                for file in sorted(path.rglob("*") if path.is_dir() else [path]):
                    name = file.relative_to(self.project).as_posix()
                    if not name.startswith(NO_RESULTS) and file.is_file():
                        found[name] = digest(file)
        return found

    def require(self, expected: dict[str, str], *stages: str) -> str:
        """Compare the results with those of an undisturbed run.

        Returns:
            The outcome that it is then.

        Raises:
            Failure: they differ.
        """
        found = self.results(*stages)
        if found != expected:
            names = sorted(name for name in found.keys() | expected.keys()
                           if found.get(name) != expected.get(name))
            raise Failure(f"other bytes: {', '.join(names)}")
        return SAME

    def undisturbed(self, stage: str) -> tuple[dict[str, str], "Pace"]:
        """Run a stage from nothing to its end; what it makes, and how long that takes.

        The filter is given something to do first.
        """
        if stage == "filter_pairs":
            edit(self.project, lambda values: values.update(filter=FILTER))
        self.clear(stage)
        began = time.monotonic()
        process = self.start_stage(stage)
        self.wait_for_lock(stage, process)
        locked = time.monotonic()
        self.complete(process)
        return self.results(stage), Pace(locked - began, time.monotonic() - locked)

    def wait_for_lock(self, stage: str, process: subprocess.Popen[bytes]) -> None:
        """Wait until a program has begun its stage, or has ended."""
        lock = self.project / "data/work/locks" / stage
        wait_until(lambda: process.poll() is not None or (
            lock.exists() and lock.read_text().startswith(f"pid {process.pid} ")), LIMIT_S)

    def reach(
        self, stage: str, process: subprocess.Popen[bytes], pace: "Pace", random: Random,
        imports: float = 0.2,
    ) -> bool:
        """Wait for a random instant of a stage's run.

        Args:
            imports: how many of these instants lie before the stage's work, in Python's imports.

        Returns:
            False if the program has ended before.
        """
        if random.random() < imports:
            time.sleep(random.uniform(0, pace.imports))
        else:
            self.wait_for_lock(stage, process)
            time.sleep(random.uniform(0, pace.work))
        return process.poll() is None

    def require_clear_error(self, process: subprocess.Popen[bytes], mark: int, pattern: str) -> str:
        """Wait for a program that must end with exit code 1 and one line that says why.

        Args:
            pattern: a regular expression, found in that line.

        Returns:
            The line.
        """
        code, said = process.wait(LIMIT_S), self.said(mark)
        errors = [line for line in said.splitlines() if "] error: " in line]
        if (code != 1 or len(errors) != 1 or "Traceback" in said
                or not re.search(pattern, errors[0])):
            raise Failure(f"no clear error ({pattern}), exit code {code}: {said[-2000:]}")
        return errors[0]


class Pace:
    """How long a stage takes here.

    Attributes:
        imports: seconds until its work begins.
        work: seconds from then to its end.
    """

    def __init__(self, imports: float, work: float) -> None:
        self.imports, self.work = imports, work


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL a program and all that it has started in its group."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def await_progress(
    process: subprocess.Popen[bytes], measure: Callable[[], float], wanted: float
) -> bool:
    """Wait until a program has done so much; returns False if it has ended before."""
    wait_until(lambda: process.poll() is not None or measure() >= wanted, LIMIT_S)
    return process.poll() is None


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def digest(file: Path) -> str:
    """The hash of a file's content; of JSON, without what is measured of time."""
    content = file.read_bytes()
    if file.suffix == ".json" and file.name != "zarr.json":
        content = json.dumps(timeless(json.loads(content)), sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def timeless(value: Any) -> Any:
    """A JSON value without the entries that are times, wherever they stand."""
    if isinstance(value, dict):
        return {key: timeless(entry) for key, entry in value.items() if key not in VOLATILE}
    return [timeless(entry) for entry in value] if isinstance(value, list) else value
