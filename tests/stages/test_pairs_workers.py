"""The stage sample_pairs with several processes: lost workers, failing ones, an end, growth."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from kdm_core.networks import MLPConfig
from kdm_core.samples import SampleSpec
from kdm_core.teachers import Denoiser, DenoiserConfig, save_teacher
from pipeline.runtime.stopping import Stop
from pipeline.workers.processes import Processes
from pipeline.workers.tasks import Place
from tests.support.project import copy_project, edit, environment, make_project, succeeds

SPEC = SampleSpec(kind="image", shape=[1, 8, 8], label_names=list("0123456789"), sigma_data=0.75)
COMMAND = [sys.executable, "-m", "stages.sample_pairs"]
PAIRS = "data/pairs/pairs.zarr"


def write_teacher(project: Path, broken: bool = False) -> None:
    torch.manual_seed(0)
    teacher = Denoiser(
        DenoiserConfig(kind="denoiser", network=MLPConfig(kind="mlp", width=64, blocks=2)), SPEC)
    if broken:
        teacher.network.leave.bias.data.fill_(float("nan"))
    save_teacher(project / "data/teacher", teacher)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a teacher, and without the data that it has the labels of."""
    folder = make_project(tmp_path_factory.mktemp("workers") / "project")
    write_teacher(folder)
    edit(folder, lambda values: values["pairs"].update(
        solver={"kind": "heun", "steps": 30}, train=1500, labels="uniform"))
    return folder


@pytest.fixture(scope="module")
def undisturbed(made: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that one process makes."""
    project = copy_project(made, tmp_path_factory.mktemp("undisturbed") / "project")
    sample(project)
    return files(project)


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    return copy_project(made, tmp_path / "project")


def engine(project: Path, **sampling: Any) -> None:
    edit(project, lambda values: values["execution"].update(sampling=sampling))


def start(project: Path) -> subprocess.Popen[str]:
    """The stage, as the leader of a process group."""
    return subprocess.Popen(COMMAND, cwd=project, env=environment(), text=True,
                            stderr=subprocess.PIPE, start_new_session=True)


def sample(project: Path) -> str:
    """Run the stage to its end; what it said."""
    return succeeds(project, "stages.sample_pairs")


def files(project: Path) -> dict[str, bytes]:
    return {str(file.relative_to(project)): file.read_bytes()
            for file in sorted((project / PAIRS).rglob("*")) if file.is_file()}


def spawned(pid: int) -> list[psutil.Process]:
    """The workers that a process has started."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # workers start short programs of the system
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def workers_at_work(project: Path, stage: subprocess.Popen[str], count: int) -> list[Any]:
    """The workers, once all are there and shards are being written."""
    end = time.monotonic() + 90
    while time.monotonic() < end:
        children = spawned(stage.pid)
        if len(children) == count and len(written(project)) > 2:
            return children
        time.sleep(0.01)
    raise AssertionError("no workers at work")


def written(project: Path) -> list[Path]:
    """The complete shards of unfinished work."""
    return list(project.glob("data/work/sample_pairs/*/pairs.zarr/index/c/*"))


def test_a_lost_worker_changes_nothing(project: Path, undisturbed: dict[str, bytes]) -> None:
    """Three processes, one of them killed, make the same files to the byte as one."""
    engine(project, engine="local", workers=3)
    stage = start(project)
    victim = workers_at_work(project, stage, 3)[0]
    victim.kill()
    _, said = stage.communicate(timeout=120)
    assert stage.returncode == 0, said
    assert f"of 3 (pid {victim.pid}) was lost (SIGKILL)" in said
    assert files(project) == undisturbed
    assert not list((project / "data/work/sample_pairs").rglob("*"))


def test_lost_workers_and_a_lost_stage(project: Path, undisturbed: dict[str, bytes]) -> None:
    engine(project, engine="local", workers=2)
    stage = start(project)
    for worker in workers_at_work(project, stage, 2):
        worker.kill()
    _, said = stage.communicate(timeout=120)
    assert stage.returncode == 1
    assert "error: all 2 workers were lost" in said
    assert "Traceback" not in said

    stage = start(project)
    workers = workers_at_work(project, stage, 2)
    stage.kill()
    stage.communicate()
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive

    engine(project, engine="local", workers=1)
    assert "going on after" in sample(project)
    assert files(project) == undisturbed


def test_sigterm_finishes_what_is_under_way(project: Path, undisturbed: dict[str, bytes]) -> None:
    """Sent to the whole group, as by a scheduler of jobs: nobody is left, and nothing is lost."""
    engine(project, engine="local", workers=2)
    stage = start(project)
    children = workers_at_work(project, stage, 2)
    os.killpg(stage.pid, signal.SIGTERM)
    _, said = stage.communicate(timeout=60)
    assert stage.returncode == 143, said
    assert "stopped as asked" in said
    assert "lost" not in said
    assert not [child for child in children if child.is_running()]
    assert 2 < len(written(project)) < 23
    assert not list(project.glob("data/work/sample_pairs/*/pairs.zarr/**/*.partial"))
    engine(project, engine="local")
    assert "going on after" in sample(project)
    assert files(project) == undisturbed


def test_two_programs_fill_one_store(project: Path, undisturbed: dict[str, bytes]) -> None:
    """Started at once, as in two terminals: one makes it, both fill it; other pairs are refused."""
    engine(project, engine="local", workers=1)
    program = "from pipeline.kdm.cli import app; app()"
    command = [sys.executable, "-c", program, "pairs", "sample", PAIRS]

    def run() -> subprocess.Popen[str]:
        return subprocess.Popen(command, cwd=project, env=environment(), text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    (project / "data/pairs").mkdir()
    both = [run(), run()]
    said = [running.communicate(timeout=120)[0] for running in both]
    assert [running.returncode for running in both] == [0, 0], said
    assert files(project) == undisturbed
    assert [file.name for file in (project / "data/pairs").iterdir()] == ["pairs.zarr"]
    edit(project, lambda values: values.update(seed=1))
    refused = run()
    said = [refused.communicate(timeout=120)[0]]
    assert refused.returncode == 1
    assert "pairs.zarr holds other pairs: noise_seed (here" in said[0]
    assert files(project) == undisturbed


def test_a_failure_of_all_is_said_once(project: Path) -> None:
    engine(project, engine="local", workers=2)
    write_teacher(project, broken=True)
    stage = start(project)
    _, said = stage.communicate(timeout=120)
    assert stage.returncode == 1
    assert said.count("makes samples that are not finite") == 1
    assert "Traceback" not in said


class Odd(Exception):
    """An error that is another one once it was pickled, or rather none."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


class Failing:
    """A task whose items say what it raises."""

    written = None

    def start(self, device: torch.device) -> Callable[[str], None]:
        def fail(item: str) -> None:
            raise Odd(item, "it is") if item == "odd" else ValueError(item)

        return fail


def test_mistakes_in_the_code_are_told() -> None:
    """Those of a user's module, for instance; the worker is not lost by them."""
    said: list[str] = []
    with Processes([Place("cpu", 1, True)], Stop(), said.append) as workers:
        task: Any = Failing()
        with pytest.raises(ValueError, match="no such shape") as caught:
            workers.run(task, ["no such shape"], print)
        assert "in fail" in caught.value.__notes__[0]
        with pytest.raises(RuntimeError, match=r"Odd\('odd: it is'\)"):
            workers.run(task, ["odd"], print)
    assert not said


def test_the_stage_grows_its_pairs(project: Path, undisturbed: dict[str, bytes]) -> None:
    """More pairs, with the output removed as DVC does: only the rest is sampled."""
    engine(project, engine="local", workers=1)
    edit(project, lambda values: values["pairs"].update(train=1010))
    sample(project)
    edit(project, lambda values: values["pairs"].update(train=1500))
    shutil.rmtree(project / "data/pairs")
    assert "1,330 pairs are those of data/work/kept_pairs" in sample(project)
    assert files(project) == undisturbed
    again, = (project / "data/work/kept_pairs").iterdir()
    assert (again / "sample/c/0/0/0/0").samefile(project / PAIRS / "sample/c/0/0/0/0")
