"""`kdm reproduce`: the paper's numbers, sweeps, their experiments, and what is made of reports."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from kdm_core.figures.files import save_figure
from kdm_core.samples import SampleSpec
from kdm_core.students.kdm import KDM
from pipeline.kdm.cli import app
from pipeline.params.reading import ParamsError
from pipeline.params.run import Params, load_params, parse_params
from pipeline.project.files import PRESETS
from pipeline.project.reproduction import paper, running, sweeps, tables
from pipeline.project.reproduction.paper import ITEMS, ReproductionError
from pipeline.project.reproduction.texts import settings
from pipeline.reporting.document import ByModel, Document, Verdicts
from pipeline.reporting.records import ExtractorRecord, VerdictRecord
from tests.support.project import commit, edit, environment

CIFAR = SampleSpec(kind="image", shape=[3, 32, 32])
DIGITS = SampleSpec(kind="image", shape=[1, 8, 8], label_names=list("0123456789"))
POINTS = SampleSpec(kind="points", shape=[2])
SPECS = {"smoke": DIGITS, "digits": DIGITS, "cifar10": CIFAR, "checkerboard": POINTS}
VGG16 = 14_714_688
"""Parameters of its convolutions, which the published code counts as its own."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path.resolve()


def use(preset: str) -> Params:
    """Make a preset the params.yaml of the current folder."""
    Path("params.yaml").write_bytes((PRESETS / f"{preset}.yaml").read_bytes())
    return load_params()


def swept(name: str, preset: str, student: str) -> dict[str, Params]:
    """The parameters of a sweep's experiments, by their names, as DVC makes them."""
    use(preset)
    found = sweeps.experiments(name, Path(), student, SPECS[preset])
    return {one.name: parse_params(sweeps.changed(Path("params.yaml"), one.overrides))
            for one in found}


def parameters(params: Params, student: str, spec: SampleSpec) -> int:
    """What of a student is trained."""
    with torch.device("meta"):
        return sum(p.numel() for p in KDM(params.students[student].model, spec).parameters())


def kdm(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments: object) -> str:
    """The one message with which `kdm` refuses something."""
    result = kdm(*arguments)
    assert result.exit_code == 1 and result.stderr.startswith("error: "), result.output
    return result.stderr


@pytest.mark.parametrize("student", ["kdm-f", "paper"])
def test_table_5(student: str) -> None:
    preset = "cifar10" if student == "paper" else "smoke"
    found = {}
    for name, params in swept("table5", preset, student).items():
        assert list(params.students) == [student]
        assert params.students[student].then == []
        losses = params.students[student].losses
        found[name.removeprefix(f"table5-{student}-")] = (
            losses.reconstruction, losses.latent, losses.prediction, losses.adversarial)
    assert found == {
        "lat": (0, 1, 0, 0), "pred": (0, 0, 1, 0), "rec": (1, 0, 0, 0),
        "lat-pred": (0, 1, 1, 0), "rec-pred": (1, 0, 1, 0), "rec-lat": (1, 1, 0, 0),
        "koopman": (1, 1, 1, 0), "all": (1, 1, 1, 0.01)}


def test_table_6() -> None:
    """The paper's sizes for its own student, and as many times the student's elsewhere."""
    for preset, student, sizes in (("cifar10", "paper", (1024, 4096, 9216)),
                                   ("smoke", "kdm", (32, 128, 288))):
        found = swept("table6", preset, student)
        assert list(found) == [f"table6-{student}-{size}" for size in sizes]
        assert tuple(one.students[student].model.latent for one in found.values()) == sizes
        if preset == "cifar10":
            assert all(parameters(one, student, CIFAR) > 47e6 for one in found.values())


@pytest.mark.parametrize("name", ["table9", "figure5a"])
def test_table_9_of_the_published_student(name: str) -> None:
    found = swept(name, "cifar10", "paper")
    assert list(found) == ["table9-paper-20M", "table9-paper-38M", "table9-paper-84M"]
    assert [(parameters(one, "paper", CIFAR) + VGG16) / 1e6
            for one in found.values()] == pytest.approx([20, 38, 84], abs=0.6)


@pytest.mark.parametrize(("preset", "field", "step"), [
    ("smoke", "width", 8), ("digits", "width", 8), ("checkerboard", "width", 8)])
def test_table_9_of_other_students(preset: str, field: str, step: int) -> None:
    whole = parameters(use(preset), "kdm", SPECS[preset])
    found = swept("table9", preset, "kdm")
    ratios = [parameters(one, "kdm", SPECS[preset]) / whole for one in found.values()]
    assert ratios == pytest.approx([20 / 62, 38 / 62, 84 / 62], rel=0.15)
    for one in found.values():
        for part in (one.students["kdm"].model.encoder, one.students["kdm"].model.decoder):
            assert getattr(part, field) % step == 0


def test_a_latent_too_large_for_small_students() -> None:
    params = use("smoke")
    model = params.students["kdm"].model.model_copy(update={"latent": 4096})
    with pytest.raises(ReproductionError, match="no width makes it .* smaller latent"):
        sweeps.scaled(model, DIGITS, 100_000, "kdm")


def test_figure_5b() -> None:
    found = swept("figure5b", "cifar10", "paper")
    assert [one.pairs.train for one in found.values()] == [250_000, 500_000, 1_000_000]
    small = swept("figure5b", "smoke", "kdm")
    assert list(small) == [f"figure5b-kdm-{n}" for n in (480, 1000, 2000)]  # whole batches of 40
    edit(Path(), lambda values: values["pairs"].update(train=100, batch=80))
    with pytest.raises(ReproductionError, match="cannot be divided in four"):
        sweeps.experiments("figure5b", Path(), "kdm", DIGITS)


def test_experiments_are_checked_before_any_is_queued() -> None:
    use("checkerboard")
    with pytest.raises(ParamsError, match="table5-kdm-all cannot be used"):
        sweeps.experiments("table5", Path(), "kdm", POINTS)


def test_students_that_cannot_be_swept() -> None:
    params = use("smoke")
    assert sweeps.choose_student(params, None) == "kdm"
    assert sweeps.choose_student(use("cifar10"), None) == "paper"
    with pytest.raises(ReproductionError, match="no student 'nobody'; there are paper"):
        sweeps.choose_student(load_params(), "nobody")
    use("smoke")

    def direct(values: Any) -> None:
        values["students"]["kdm"]["model"] = {"kind": "direct"}
        values["students"]["kdm"]["losses"] = {"adversarial": 0.0}

    edit(Path(), direct)
    for name in sweeps.SWEEPS:
        with pytest.raises(ReproductionError, match=r"of kind direct.*name another one \(kdm-f\)"):
            sweeps.experiments(name, Path(), "kdm", DIGITS)
    assert sweeps.choose_student(load_params(), None) == "kdm-f"


def test_all_tables_and_figures_are_there() -> None:
    assert set(ITEMS) == {*(f"table{n}" for n in range(1, 10)),
                          *(f"figure{n}" for n in range(1, 14)), "figure5a", "figure5b", "figure5c"}
    assert {name for name, one in ITEMS.items() if one.kind == "sweep"} == set(sweeps.SWEEPS)
    for one in ITEMS.values():
        assert all((PRESETS / f"{preset}.yaml").is_file() for preset in one.presets)
        assert all(name in ITEMS for name in one.names)
    listed = kdm("reproduce", "--list").stdout
    assert [line.split()[0] for line in listed.splitlines()] == list(ITEMS)


def test_published_numbers() -> None:
    def numbers(name: str) -> list[tuple[float | None, float | None]]:
        return [(one.fid, one.inception) for one in ITEMS[name].published]

    assert numbers("table9") == [(10.2, 8.50), (5.04, 9.12), (4.89, 9.11)]
    assert [fid for fid, _ in numbers("table5")] == [487, 11.2, 457, 9.53, 10.7, 11.16, 7.83, 4.97]
    assert [fid for fid, _ in numbers("table6")] == [5.08, 7.24, 9.41]
    assert numbers("table1")[1:] == [(4.97, 9.22), (4.68, 9.08), (5.91, 8.86)]
    assert numbers("table2") == [(3.56, 9.54), (3.24, 9.68)]
    use("smoke")
    for name in sweeps.SWEEPS:  # a column of ours beside each of the paper's
        ours = sweeps.experiments(name, Path(), "kdm", DIGITS)
        assert [one.key for one in ITEMS[name].published] == [one.key for one in ours]


def test_settings_of_table_7() -> None:
    said = list(settings())
    assert sum("are the paper's" in line for line in said) == 3
    assert "latent is 256, in the paper 1024" in said[0]


@pytest.mark.parametrize(("name", "said"), [
    ("table4", "python -m benchmarks.table4"), ("table8", "kdm study tally"),
    ("table7", "kdm preset show cifar10"), ("figure1", "nothing to run"),
    ("figure5", "kdm reproduce figure5b")])
def test_what_needs_no_project(name: str, said: str) -> None:
    result = kdm("reproduce", name)
    assert result.exit_code == 0 and said in result.stdout


def test_a_dry_run_says_all_and_does_nothing(folder: Path) -> None:
    said = kdm("reproduce", "table6", "--preset", "smoke", "--dry-run").stdout
    assert re.findall(r"^table6\S+", said, re.M) == [f"table6-kdm-{n}" for n in (32, 128, 288)]
    assert "-S ++students.kdm.model.latent=128" in said and "-S '~students.kdm-f'" in said
    assert "dvc repro study@kdm" in kdm("reproduce", "figure2", "--preset", "smoke",
                                        "--dry-run").stdout
    assert list(folder.iterdir()) == []


def test_what_is_refused(folder: Path) -> None:
    assert "has no 'table10'" in refused("reproduce", "table10")
    assert "name a table or figure" in refused("reproduce")
    assert "is no project" in refused("reproduce", "table5")
    assert "no preset 'none'" in refused("reproduce", "table5", "--preset", "none")
    (folder / "reproduce-smoke").mkdir()
    (folder / "reproduce-smoke/dvc.yaml").write_text("stages: {}\n")
    assert "is not the preset smoke" in refused("reproduce", "table5", "--preset", "smoke")


@pytest.fixture
def small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of the preset smoke in which nothing has run and nothing is committed."""
    for name, value in environment(GIT_CONFIG_GLOBAL=os.devnull).items():
        monkeypatch.setenv(name, value)
    assert kdm("new", "x", "--preset", "smoke").exit_code == 0
    monkeypatch.chdir(folder / "x")
    return folder / "x"


def test_what_experiments_need_of_git(small: Path) -> None:
    assert "nothing is committed" in refused("reproduce", "table6")
    commit(small)
    running.require_repository(small)
    edit(small, lambda values: values.update(seed=1))
    assert "changes that are not committed (params.yaml)" in refused("reproduce", "table6")
    assert "are of kind image" in refused("reproduce", "figure5c").replace("\n", " ")
    with pytest.raises(ReproductionError, match="in no git repository"):
        running.require_repository(Path("/"))


def test_who_commits_must_be_known(
    small: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "config").write_text("[user]\nuseConfigOnly = true\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(folder / "config"))
    said = refused("reproduce", "table2", "--preset", "cifar10-cond")
    assert "git does not know who commits" in said and "git config --global user.name" in said


def test_data_that_are_not_there_are_named(
    small: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who commits may be said in the environment alone."""
    monkeypatch.chdir(folder)
    for who in ("AUTHOR", "COMMITTER"):
        for what in ("NAME", "EMAIL"):
            monkeypatch.setenv(f"GIT_{who}_{what}", "test@localhost")
    said = refused("reproduce", "table2", "--preset", "cifar10-cond")
    assert "data.path: cifar-10-python.tar.gz does not exist" in said
    assert (folder / "reproduce-cifar10-cond/dvc.yaml").is_file()
    assert "data.path" in refused("reproduce", "table5", "--preset", "cifar10-cond")


def document(fd: float, student: str = "kdm", genuine: bool = False, **more: Any) -> Document:
    """A report, made up."""
    fd_key, is_key = ("fid", "is") if genuine else ("fd_vgg16", "is_vgg16")
    extractor = ExtractorRecord(
        fingerprint="f", dim=512, reference="test split", reference_n=719, text="features",
        metrics={"fd": fd_key, "is": is_key})
    return Document(
        title="made up", dataset="digits", kind="image", n=256,
        conditions={"hardware": "two cores", "revision": "abc", "n": 256},
        teacher={fd_key: 4.0, is_key: 9.5, "parameters": 400}, ratios={student: {fd_key: fd / 4}},
        students={student: {fd_key: fd, is_key: 9.0, "mse": 0.02, "mse_permuted": 0.4,
                            "lpips_vgg": 0.05, "parameters": 7_000_000}},
        intervals=ByModel(students={student: {fd_key: (fd - 0.5, fd + 0.5)}},
                          ratios={student: {fd_key: (fd / 4 - 0.1, fd / 4 + 0.1)}}),
        verdicts=Verdicts(students={student: VerdictRecord(word="close")}),
        extractors={"inception" if genuine else "vgg16": extractor}, **more)


HEAD = tables.Head("smoke, 1 value changed", "kdm", "kdm reproduce table6", papers=False)


def outcomes(*values: float | None, genuine: bool = False) -> list[tables.Outcome]:
    """The teacher and table 6's columns with these distances; None for one that failed."""
    rows = [tables.Outcome(f"latent {size}", "kdm",
                           None if fd is None else document(fd, genuine=genuine), published,
                           "the experiment failed")
            for size, fd, published in zip((32, 128, 288), values, ITEMS["table6"].published,
                                           strict=True)]
    return [tables.Outcome("teacher", paper.TEACHER, document(1.0, genuine=genuine)), *rows]


def rows_of(page: str) -> Iterator[dict[str, str]]:
    """The rows of the table in a page, by their columns' titles."""
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")]
             for line in page.splitlines() if line.startswith("| ")]
    for line in lines[1:]:
        yield dict(zip(lines[0], line, strict=True))


def test_a_table() -> None:
    page = tables.table("table6", ITEMS["table6"], HEAD, outcomes(5.0, 6.0, 9.0), "table6.png")
    teacher, first, *_ = rows_of(page)
    assert first["Fréchet distance, vgg16 ↓"] == "5 [4.5, 5.5]"
    assert first["… over the teacher's"] == "1.25× [1.15, 1.35]"
    assert first["MSE, share of permuted pairs' ↓"] == "5.0 %"
    assert first["LPIPS (VGG) ↓"] == "0.0500"
    assert first["parameters"] == "7,000,000" and first["verdict"] == "close"
    assert first["in the paper"] == "1024"
    assert first["the paper's FID (other features and data) ↓"] == "5.08"
    assert teacher["Fréchet distance, vgg16 ↓"] == "4" and not teacher["LPIPS (VGG) ↓"]
    assert not any("Inception score" in title for title in first)
    assert "Here “latent 32” came out best" in page and "its best is ours, too" in page
    assert "The order of the 3 is the paper's." in page
    for said in ("two cores", "abc", "smoke, 1 value changed", "`kdm reproduce table6`",
                 "(table6.png)", "compare the order"):
        assert said in page


def test_an_order_that_is_another() -> None:
    page = tables.table("table6", ITEMS["table6"], HEAD, outcomes(9.0, 6.0, 5.0), "")
    assert "in the paper “1024” did (FID 5.08), which is “latent 32” here." in page
    assert "The order of the 3 has a rank correlation" in page
    assert "−1.00" in page and "too" not in page.splitlines()[2]


def test_what_is_absent_is_an_empty_cell_with_a_reason() -> None:
    page = tables.table("table6", ITEMS["table6"], HEAD, outcomes(5.0, None, 9.0), "")
    _, _, second, _ = rows_of(page)
    assert not second["Fréchet distance, vgg16 ↓"] and not second["parameters"]
    assert second["the paper's FID (other features and data) ↓"] == "7.24"
    assert "- latent 128: the experiment failed" in page
    nothing = tables.table("table6", ITEMS["table6"], HEAD, outcomes(None, None, None)[1:], "")
    assert "Nothing has come out yet" in nothing
    lacking = tables.Outcome("x", "kdm", document(5.0, absent=["FID: no weights"]))
    assert "- FID: no weights" in tables.table("table6", ITEMS["table6"], HEAD, [lacking], "")


def test_the_papers_own_settings_are_comparable() -> None:
    page = tables.table("table6", ITEMS["table6"], HEAD._replace(papers=True),
                        outcomes(5.0, 7.0, 9.0, genuine=True), "")
    _, first, *_ = rows_of(page)
    assert first["the paper's FID ↓"] == "5.08" and first["FID, inception ↓"] == "5 [4.5, 5.5]"
    assert first["Inception score ↑"] == "9" and "compare the order" not in page


def test_text_from_outside_stays_in_its_cell() -> None:
    evil = tables.Outcome("a | b\n# <script>", "kdm", None, reason="x\n\n## y")
    page = tables.table("table6", ITEMS["table6"], HEAD, [evil], "")
    assert "\n# <" not in page and "\n## y" not in page and "a \\| b # \\<script>" in page


def test_a_figure(folder: Path) -> None:
    figure = tables.drawn(outcomes(5.0, None, 9.0), ordered=True)
    assert figure is not None and len(figure.axes) == 2
    save_figure(folder / "x.png", figure)
    assert Image.open(folder / "x.png").width > 600
    assert tables.drawn(outcomes(None, None, None)[1:], ordered=True) is None


def test_what_a_killed_worker_left_is_no_running_worker(folder: Path) -> None:
    assert not running.is_served(folder)
    (folder / "dvc-exp-worker-1.json").write_text(f'{{"pid": {os.getpid()}}}')
    assert not running.is_served(folder)  # the number is another program's now
    (folder / "dvc-exp-worker-1.json").write_text("{")
    assert not running.is_served(folder)


def cut_down(values: Any) -> None:
    """Two small students of which the sweep takes a second each."""
    values["students"] = {"kdm": values["students"]["kdm"]}
    values["students"]["kdm"]["training"].update(steps=40)
    values["studies"] = {name: None for name in (
        "grids", "semantics", "vicinity", "interpolation", "steps", "path", "modes", "spectrum",
        "memorisation")}


TWO = """
from pathlib import Path
from pipeline.kdm import cli
from pipeline.project.reproduction import sweeps
sweeps.LATENTS.pop("9x")
cli.app(["reproduce", "table6"])
"""
"""`kdm reproduce table6` with two columns of three."""


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on(project: Path) -> None:
    """Command and worker are killed while the second experiment runs: the first is not run again,
    the second is."""
    edit(project, cut_down)
    (project / "two.py").write_text(TWO)
    commit(project)
    with subprocess.Popen([sys.executable, "two.py"], cwd=project, env=environment(), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          start_new_session=True) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "table6-kdm-128: Running stage 'train_student@kdm'" in line:
                break
        os.killpg(process.pid, signal.SIGKILL)
    assert "Running stage 'train_student@kdm'" in "".join(said), "".join(said)
    name, = running.entries(project, ["table6-kdm-128"])
    assert name.state == "running"  # DVC's worker goes on by itself
    kill_worker(project)
    assert running.entries(project, ["table6-kdm-128"])[0].state == "abandoned"

    again = subprocess.run([sys.executable, "two.py"], cwd=project, env=environment(), text=True,
                           capture_output=True, check=False)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    assert "table6-kdm-32: there already" in again.stdout
    assert "table6-kdm-128: its worker was killed" in again.stdout
    assert "table6-kdm-32: Running stage" not in again.stdout
    page = (project / "reproduction/table6.md").read_text()
    rows = {row[""]: row for row in rows_of(page)}
    assert list(rows) == ["teacher", "latent 32", "latent 128"]
    assert all(row["Fréchet distance, classifier ↓"] for row in rows.values())
    assert "made by" in page.lower() and (project / "reproduction/table6.png").is_file()

    commit(project)  # nor does another commit make it run again
    third = subprocess.run([sys.executable, "two.py"], cwd=project, env=environment(), text=True,
                           capture_output=True, check=False)
    assert third.stdout.count("there already") == 2 and "Running stage" not in third.stdout


def kill_worker(project: Path) -> None:
    """End the worker of DVC's queue as a power cut would, with all that it runs."""
    queue = project / ".dvc/tmp/exps/celery"
    note, = queue.glob("dvc-exp-worker-*.json")
    pid = int(re.findall(r'"pid": (\d+)', note.read_text())[0])
    os.killpg(os.getpgid(pid), signal.SIGKILL)
    deadline = time.monotonic() + 20
    while running.is_served(queue) and time.monotonic() < deadline:
        time.sleep(0.1)


