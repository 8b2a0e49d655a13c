"""`kdm distil`: pairs alone become a student and a report."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from kdm_core.pairs.store import PairStore
from kdm_core.sharing.hub import from_pretrained
from pipeline.kdm.cli import app
from pipeline.project import distil
from tests.support.project import edit, environment, make_project, repro
from tests.support.waiting import wait_until

N = 60


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, in which programs of stages are forks of a warm one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(distil, "run", lambda project: repro(project) and None)
    return tmp_path.resolve()


def noise(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def pictures(noise: NDArray[np.float32]) -> NDArray[np.uint8]:
    return (np.tanh(noise) * 127 + 128).astype(np.uint8)


def arrays() -> str:
    given = noise(N, 1, 8, 8)
    np.savez("pairs.npz", noise=given, samples=pictures(given), labels=np.arange(N) % 2)
    return "pairs.npz"


def published_points() -> str:
    """States of a teacher's ODE, noise first, as the checkerboard's pairs are published."""
    states = noise(3, 400, 2)
    states[-1] = 2 * np.sign(states[0]) + np.tanh(states[0])
    np.save("board.npy", states)
    return "board.npy"


def folder_of_pictures() -> str:
    given = noise(N, 3, 8, 8)
    Path("pictures").mkdir()
    for number, picture in enumerate(pictures(given)):
        Image.fromarray(picture.transpose(1, 2, 0)).save(f"pictures/{number:05d}.png")
    np.save("pictures/noise.npy", given)
    return "pictures"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["distil", *arguments])


@pytest.mark.parametrize("make", [arrays, published_points, folder_of_pictures])
def test_pairs_become_a_student_and_a_report(make: Callable[[], str], folder: Path) -> None:
    done = run(make(), "--out", "student", "--steps", "5")
    assert done.exit_code == 0, done.output
    project = folder / "student-project"
    student = from_pretrained(folder / "student")
    assert student.sample(3, seed=0, labels=[0] * 3 if make is arrays else None).isfinite().all()
    document = json.loads((project / "reports/report.json").read_bytes())
    assert document["teacher"] == document["real"] == {}
    assert len([line for line in document["absent"] if "source: none" in line]) == 2
    page = (project / "reports/report.html").read_text()
    # After five steps a student of images has learned nothing, and that is said.
    word = document["verdicts"]["students"]["student"]["word"]
    assert f"verdict  {word}" in done.stdout and word in page
    assert word in (folder / "student/README.md").read_text() or make is published_points
    assert str(project / "reports/report.html") in done.stdout
    # The same once more is refused before any work, and elsewhere the import goes on.
    again = run("pairs", "--out", "student")
    assert again.exit_code == 1 and "exists already, and nothing is overwritten" in again.stderr


def test_it_goes_on_where_it_was_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = arrays()

    def stopped(project: Path) -> None:
        raise distil.DistilError("the run did not come to its end")

    with monkeypatch.context() as first:
        first.setattr(distil, "run", stopped)
        done = run(pairs, "--out", "student", "--steps", "5")
        assert done.exit_code == 1 and "did not come to its end" in done.stderr
    other = run(pairs, "--out", "student", "--steps", "6")
    assert other.exit_code == 1 and "another training" in other.stderr
    with monkeypatch.context() as second:
        second.setattr(distil, "run", stopped)
        assert "going on in" in run(pairs, "--out", "student", "--steps", "5").stdout
    edit(folder / "student-project", lambda values: values.update(seed=1))
    mine = run(pairs, "--out", "student", "--steps", "5")
    assert mine.exit_code == 1 and "somebody has worked on it" in mine.stderr


INTERRUPTED = """
import signal, sys
from pathlib import Path
from pipeline.project import distil

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run aside
distil.run(Path())
"""


def test_dvc_ends_by_itself_after_ctrl_c(folder: Path) -> None:
    """Killed, it would leave its locks, and complain of each of them the next time."""
    make_project(folder / "project")
    (folder / "project/dvc.yaml").write_text(
        "stages: {sleep: {cmd: echo begun > begun; sleep 60, deps: [params.yaml], outs: [out]}}")
    started = subprocess.Popen([sys.executable, "-c", INTERRUPTED], cwd=folder / "project",
                               env=environment(), start_new_session=True, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_until((folder / "project/begun").exists, 120)
    os.killpg(started.pid, signal.SIGINT)
    said, _ = started.communicate(timeout=30)
    assert "KeyboardInterrupt" in said and started.returncode
    locks = folder / "project/.dvc/tmp/rwlock"
    assert locks.exists() and not any(json.loads(locks.read_text() or "{}").values())


def test_a_store_is_used_where_it_lies(folder: Path) -> None:
    pairs = arrays()
    imported = CliRunner().invoke(app, ["pairs", "import", pairs, "store.zarr", "--test", "6",
                                        "--validation", "6"])
    assert imported.exit_code == 0, imported.output
    text = distil.parameters(str(folder / "store.zarr"), PairStore.open("store.zarr").spec, None)
    assert f"location: {folder / 'store.zarr'}" in text and "steps: 2000" in text


def uniform() -> None:
    given = np.random.default_rng(0).uniform(size=(N, 1, 8, 8)).astype(np.float32)
    np.savez("pairs.npz", noise=given, samples=pictures(given))


def no_noise() -> None:
    np.savez("pairs.npz", samples=pictures(noise(N, 1, 8, 8)))


def other_sizes() -> None:
    np.savez("pairs.npz", noise=noise(N, 1, 8, 8), samples=pictures(noise(N, 1, 6, 6)))


def too_few() -> None:
    given = noise(3, 1, 8, 8)
    np.savez("pairs.npz", noise=given, samples=pictures(given))


@pytest.mark.parametrize(("write", "reason"), [
    (uniform, "normal noise 0 and 3"), (too_few, "too few"),
    (no_noise, "`kdm pairs import PAIRS STORE --noise …`: pairs.npz holds none"),
    (other_sizes, "does not fit samples of shape"), (lambda: None, "does not exist")])
def test_what_are_no_pairs_is_refused_before_anything_is_made(
    write: Callable[[], None], reason: str, folder: Path
) -> None:
    write()
    done = run("pairs.npz", "--out", "student")
    assert done.exit_code == 1 and reason in done.stderr and done.stderr.count("error") == 1
    shutil.rmtree("pairs.npz", ignore_errors=True)
    assert {path.name for path in folder.iterdir()} <= {"pairs.npz"}
