"""Any folder as a project: `kdm new`, projects of older versions, and an installed wheel."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prefect.exceptions import ObjectNotFound
from ruamel.yaml import YAML
from typer.testing import CliRunner, Result

from pipeline.flow import deploy
from pipeline.flow.flow import distill
from pipeline.kdm.cli import app
from pipeline.project.current import PipelineError, require_current_project
from pipeline.project.files import PRESETS, TEMPLATES, deployment_name
from tests.support.project import ROOT, environment

MADE = {".dvc", ".dvcignore", ".git", ".gitignore", "README.md", "dvc.yaml", "params.schema.json",
        "params.yaml", "prefect.yaml"}
OLD = """
stages:
  prepare_data:
    cmd: python -m stages.prepare_data
    deps: [kdm_core/config.py]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path.resolve()


def kdm(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def new(*arguments: object) -> str:
    """`kdm new`, which must succeed; returns what it printed."""
    result = kdm("new", *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> str:
    """The one line with which `kdm` refuses something."""
    result = kdm(*arguments)
    assert result.exit_code == 1 and result.stderr.startswith("error: "), result.output
    assert result.stderr.count("\n") == 1
    return result.stderr


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, env=environment(), text=True,
                          check=True, capture_output=True).stdout


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}


def test_templates_are_those_of_the_repository() -> None:
    for name, template in (("dvc.yaml", "pipeline.yaml"), ("prefect.yaml", "prefect.yaml"),
                           (".dvcignore", "dvcignore")):
        assert (ROOT / name).read_bytes() == (TEMPLATES / template).read_bytes(), name
    lines = (ROOT / ".gitignore").read_text().splitlines()
    assert set((TEMPLATES / "gitignore").read_text().splitlines()) <= set(lines)
    assert (ROOT / "params.yaml").exists()


def test_a_new_project(folder: Path) -> None:
    project = folder / "some/where/My cells"
    said = new("some/where/My cells", "--preset", "smoke")
    assert said.splitlines() == [
        f"{project} is a project now (preset smoke), a git repository of its own; nothing is "
        "committed yet",
        "next:", "    cd 'some/where/My cells'",
        "    kdm params check && dvc repro    # runs it; the report is reports/report.html",
        "    kdm status                       # in another terminal: how far it is"]
    assert {path.name for path in project.iterdir()} == MADE
    assert (project / "params.yaml").read_bytes() == (PRESETS / "smoke.yaml").read_bytes()
    assert (project / ".dvc/config").read_bytes() == (ROOT / ".dvc/config").read_bytes()
    staged = set(git(project, "diff", "--cached", "--name-only").split())
    assert staged == MADE - {".dvc", ".git", "params.schema.json"} | {
        ".dvc/config", ".dvc/.gitignore"}
    assert git(project, "status", "--short", "--untracked-files").count("\n") == len(staged)
    for made in ("data/dataset", "reports/report.html", "dvc_plots/index.html"):
        assert git(project, "check-ignore", made)
    readme = (project / "README.md").read_text()
    assert readme.startswith("# My cells\n") and "$" not in readme
    assert "kdm-distill/My-cells" in readme and "`smoke`" in readme
    served = YAML(typ="safe").load(project / "prefect.yaml")["deployments"][0]
    assert (served["name"], served["entrypoint"]) == ("My-cells", "pipeline.flow.flow.distill")


def test_it_can_be_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two beside each other, which share nothing but the code."""
    for name, preset in (("a", "smoke"), ("b", "checkerboard")):
        new(name, "--preset", preset)
    for name, students in (("a", ["kdm", "kdm-f"]), ("b", ["kdm", "kdm-f"])):
        monkeypatch.chdir(folder / name)
        assert kdm("params", "check").stdout == "params.yaml: ok\n"
        status = kdm("status")
        assert status.exit_code == 0, status.output
        assert all(f"train_student@{student}" in status.stdout for student in students)
        assert "never run" in status.stdout and "error" not in status.output


def test_here(folder: Path) -> None:
    """In the current folder, with the default preset, and with an empty git repository."""
    git(folder, "init", "--quiet")
    said = new(".")
    assert "(preset digits), in the git repository that was there" in said
    assert "cd " not in said
    assert (folder / "params.yaml").read_bytes() == (PRESETS / "digits.yaml").read_bytes()


def test_in_a_repository_of_others(folder: Path) -> None:
    """Its git keeps the project, and DVC's begins in the project; a project that it ignores has
    its own."""
    git(folder, "init", "--quiet")
    (folder / ".gitignore").write_text("scratch/\n")
    assert f"in the git repository {folder};" in new("runs/x", "--preset", "smoke")
    project = folder / "runs/x"
    assert not (project / ".git").exists() and (project / ".dvc/config").exists()
    assert "runs/x/dvc.yaml" in git(folder, "diff", "--cached", "--name-only")
    require_current_project(project)
    said = new("scratch/y", "--preset", "smoke")
    assert f"a git repository of its own, since {folder} ignores it" in said
    assert (folder / "scratch/y/.git").exists()


def test_what_is_there_stays(folder: Path) -> None:
    (folder / "README.md").write_text("mine\n")
    (folder / "notes.txt").write_text("mine\n")
    (folder / ".gitignore").write_text("*.log\n__pycache__/")
    said = new(".", "--preset", "smoke")
    assert "README.md was there and stays as it is\n" in said
    assert ".gitignore was there and got 10 more lines\n" in said
    assert (folder / "README.md").read_text() == (folder / "notes.txt").read_text() == "mine\n"
    ignored = (folder / ".gitignore").read_text().splitlines()
    assert ignored[:2] == ["*.log", "__pycache__/"] and "/data/*" in ignored
    assert "notes.txt" not in git(folder, "diff", "--cached", "--name-only")


def test_it_goes_on_with_what_was_begun(folder: Path) -> None:
    new("x", "--preset", "smoke")
    whole = files(folder / "x")
    for name in ("dvc.yaml", "README.md"):
        (folder / "x" / name).unlink()
    new("x", "--preset", "smoke")
    kept = {name: content for name, content in files(folder / "x").items() if ".git/" not in name}
    assert kept == {name: content for name, content in whole.items() if ".git/" not in name}


def is_project(folder: Path) -> str:
    new(folder, "--preset", "smoke")
    return "is a project already: `kdm status`"


def has_files(folder: Path) -> str:
    folder.mkdir()
    (folder / "params.yaml").write_text("seed: 0\n")
    (folder / "dvc.yaml").write_text("stages: {mine: {cmd: ls}}\n")
    return "has dvc.yaml, params.yaml already, and nothing is overwritten: move that away"


def is_old(folder: Path) -> str:
    new(folder, "--preset", "smoke")
    (folder / "dvc.yaml").write_text(OLD)
    return "dvc.yaml is of an older version (it has no stage `plan`): `kdm new --refresh "


def is_file(folder: Path) -> str:
    folder.write_text("mine\n")
    return "is no folder: choose another name"


@pytest.mark.parametrize("prepare", [is_project, has_files, is_old, is_file])
def test_refused(prepare: Callable[[Path], str], folder: Path) -> None:
    wanted = prepare(folder / "x")
    before = files(folder)
    assert wanted in refused("new", "x", "--preset", "smoke")
    assert files(folder) == before


def test_a_repository_that_git_cannot_read(folder: Path) -> None:
    (folder / ".git").write_text("gitdir: nowhere\n")
    assert "failed in" in refused("new", ".", "--preset", "smoke")
    assert not (folder / "dvc.yaml").exists()


def test_no_such_preset(folder: Path) -> None:
    said = refused("new", "x", "--preset", "smok")
    assert "no preset 'smok'; there are afhqv2, " in said and "smoke" in said
    assert not (folder / "x").exists()


def test_without_git(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder))
    assert "git is missing" in (said := refused("new", "x")) and "apt install git" in said
    assert not (folder / "x").exists()


def test_where_one_may_not_write(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mkdir(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert f"{folder / 'x'} cannot be written (Permission denied): choose another folder" in (
        refused("new", "x"))


AGES = {
    "it has no stage `plan`": OLD,
    "it lists code: stages/guard.py": """
stages:
  plan: {cmd: python -m stages.plan, outs: [data/plan]}
  train_student:
    foreach: ${students}
    do: {cmd: 'python -m stages.train_student ${key}', deps: [data/dataset, stages/guard.py]}
""",
    "its metrics are all figures": """
stages:
  plan: {cmd: python -m stages.plan, outs: [data/plan]}
  teacher:
    cmd: python -m stages.teacher
    metrics: [{reports/timings/teacher.json: {cache: false}}]
"""}


@pytest.mark.parametrize("entrypoint", ["pipeline/flow.py:distill", "pipeline.flow.distill"])
@pytest.mark.parametrize("age", AGES)
def test_a_project_of_an_older_version(
    age: str, entrypoint: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads it says so, and what mends it; that keeps all that was there."""
    new("x", "--preset", "smoke")
    project = folder / "x"
    today = files(project)
    (project / "dvc.yaml").write_text(AGES[age])
    (project / "params.yaml").write_text((PRESETS / "smoke.yaml").read_text() + "# mine\n")
    served = (project / "prefect.yaml").read_text()
    old_flow = served.replace("pipeline.flow.flow.distill", entrypoint)
    (project / "prefect.yaml").write_text(old_flow)
    monkeypatch.chdir(project)
    wanted = f"dvc.yaml is of an older version ({age}): `kdm new --refresh {project}` replaces"
    assert wanted in refused("status")
    assert wanted in kdm("doctor").stdout
    with pytest.raises(PipelineError, match=re.escape(wanted)):
        distill.fn()
    with pytest.raises(PipelineError, match=re.escape(wanted)):
        deploy.serve(4200)

    said = new("--refresh", project)
    assert "dvc.yaml is today's now; the old one is dvc.yaml.bak\n" in said
    assert "the old one is prefect.yaml.bak\n" in said
    assert (project / "dvc.yaml").read_bytes() == today["dvc.yaml"]
    assert (project / "dvc.yaml.bak").read_text() == AGES[age]
    assert (project / "prefect.yaml").read_text() == served
    assert (project / "params.yaml").read_text().endswith("# mine\n")
    require_current_project(project)
    assert new("--refresh", project) == f"{project / 'dvc.yaml'} is today's already\n"
    assert not (project / "dvc.yaml.bak2").exists()


def test_refresh_refuses(folder: Path) -> None:
    assert "is no project, so there is nothing to refresh" in refused("new", "--refresh", ".")
    assert "give it no --preset" in refused("new", "--refresh", ".", "--preset", "smoke")


def test_pipelines_of_others_are_left_alone(folder: Path) -> None:
    (folder / ".dvc").mkdir()
    for content in ("stages: {mine: {cmd: ls}}", "stages: {}", "stages: [", "- 1",
                    "stages: {a: 3}"):
        (folder / "dvc.yaml").write_text(content)
        require_current_project(folder)


@pytest.mark.parametrize(("folder_name", "name"), [
    ("cells", "cells"), ("My cells", "My-cells"), ("1e5", "1e5"), ("größe", "gr-e"),
    ("…", "project")])
def test_names_of_deployments(folder_name: str, name: str) -> None:
    assert deployment_name(folder_name) == name


def test_the_deployment_is_the_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name stands in prefect.yaml, and one server does not have it twice."""
    with pytest.raises(deploy.DeployError, match=r"prefect.yaml is missing: .*kdm new DIR"):
        deploy.deployment_here()
    (folder / "prefect.yaml").write_text("deployments: []\n")
    with pytest.raises(deploy.DeployError, match=r"names no deployment .*deployments\[0\]\.name"):
        deploy.deployment_here()
    (folder / "prefect.yaml").write_bytes((ROOT / "prefect.yaml").read_bytes())
    assert deploy.deployment_here() == "kdm-distill/kdm-distill"
    for name in ("a/x", "b/x"):
        new(name, "--preset", "smoke")
    monkeypatch.chdir(folder / "b/x")
    assert deploy.deployment_here() == "kdm-distill/x"

    for known, error in ((folder / "b/x", None), (folder / "gone", None), (None, None),
                         (folder / "a/x", f"is the project in {folder / 'a/x'}: give this one")):
        monkeypatch.setattr(deploy, "get_client", lambda known=known, **_: Server(known))
        if error is None:
            deploy.require_own("kdm-distill/x")
        else:
            with pytest.raises(deploy.DeployError, match=re.escape(error)):
                deploy.require_own("kdm-distill/x")


class Server:
    """A client of a server that has a deployment of a folder, or none."""

    def __init__(self, known: Path | None) -> None:
        self.known = known

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read_deployment_by_name(self, name: str) -> SimpleNamespace:
        if self.known is None:
            raise ObjectNotFound(Exception(name))
        return SimpleNamespace(pull_steps=[{
            "prefect.deployments.steps.set_working_directory": {"directory": str(self.known)}}])


def test_where_presets_lie() -> None:
    assert Path(kdm("preset", "path", "smoke").stdout.strip()).is_file()
    assert "no preset 'smoky'" in refused("preset", "path", "smoky")


class Installed:
    """A wheel of this repository in an environment of its own, beside the packages of this one.

    Attributes:
        environment: of commands, in which `kdm` and `python` are of that environment.
    """

    def __init__(self, home: Path) -> None:
        source, self.bin = home / "source", home / "env/bin"
        source.mkdir(parents=True)
        for name in ("kdm_core", "pipeline", "stages"):
            shutil.copytree(ROOT / name, source / name,
                            ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        self.environment = environment(KDM_OFFLINE="1")
        del self.environment["PYTHONPATH"]
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        self.run([*pip, "wheel", source, "--no-deps", "--no-build-isolation",
                  "--wheel-dir", home], home)
        self.run([sys.executable, "-m", "venv", "--without-pip", home / "env"], home)
        wheel, = home.glob("*.whl")
        self.run([*pip, "--python", self.bin / "python", "install", "--no-deps", "--no-index",
                  wheel], home)
        shutil.rmtree(source)
        # A folder on the path has its own .pth files, an editable installation's say, passed over.
        place, = home.glob("env/lib/python*/site-packages")
        (place / "others.pth").write_text("\n".join(
            path for path in sys.path if path.endswith("-packages")) + "\n")
        self.environment["PATH"] = f"{self.bin}{os.pathsep}{self.environment['PATH']}"

    def run(self, command: list[Any], folder: Path) -> str:
        """Run a command that must succeed; returns what it printed."""
        done = subprocess.run(command, cwd=folder, env=self.environment, text=True,
                              capture_output=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"))


def test_an_installation(installed: Installed, folder: Path) -> None:
    """Presets and templates are in the wheel, and no file of the repository is needed."""
    run = installed.run
    kdm = installed.bin / "kdm"
    where = run(["python", "-c", "import pipeline, stages; print(pipeline.__file__)"], folder)
    assert Path(where.strip()).is_relative_to(installed.bin.parent)
    assert "is a project now (preset smoke)" in run([kdm, "new", "x", "--preset", "smoke"], folder)
    run([kdm, "new", "y", "--preset", "checkerboard"], folder)
    assert run([kdm, "params", "check"], folder / "x") == "params.yaml: ok\n"
    assert "never run" in run([kdm, "status"], folder / "x")
    for name in ("x", "y"):
        assert "plan" in run(["python", "-m", "dvc", "stage", "list", "--name-only"],
                             folder / name).split()
    assert Path(run([kdm, "preset", "path", "digits"], folder).strip()).is_file()


def test_pairs_are_distilled_by_an_installation(installed: Installed, folder: Path) -> None:
    """From an .npz in an empty folder to samples of a student, in two commands."""
    noise = np.random.default_rng(0).standard_normal((60, 1, 8, 8), dtype=np.float32)
    np.savez("pairs.npz", noise=noise, samples=(np.tanh(noise) * 127 + 128).astype(np.uint8))
    kdm = installed.bin / "kdm"
    said = installed.run([kdm, "distil", "pairs.npz", "--out", "student", "--steps", "5"], folder)
    report = folder / "student-project/reports/report.html"
    assert str(report) in said and report.stat().st_size > 10_000
    installed.run([kdm, "sample", "student", "--n", "4", "--out", "samples.png"], folder)
    assert (folder / "samples.png").stat().st_size > 500


@pytest.mark.slow
def test_an_installation_runs_whole(installed: Installed, folder: Path) -> None:
    """From an empty folder to the report, with nothing but the wheel."""
    installed.run([installed.bin / "kdm", "new", "x", "--preset", "smoke"], folder)
    installed.run(["python", "-m", "dvc", "repro"], folder / "x")
    assert (folder / "x/reports/report.html").stat().st_size > 10_000
    assert "none, all is done" in installed.run([installed.bin / "kdm", "status"], folder / "x")
