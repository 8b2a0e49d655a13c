"""What `dvc metrics`, `dvc exp` and `dvc repro` print can be read on one screen."""

import json
import subprocess
from pathlib import Path

import pytest

from kdm_core.metrics.estimate import certain
from pipeline.runtime.runner import Stage
from stages.evaluate.results import Results
from tests.support.project import commit, dvc, edit, environment, make_project, python

COLUMNS, ROWS = 160, 50
STUDENTS = ("kdm", "kdm-f")
FIGURES = ("verdict", "ratio_classifier", "ratio_vgg16", "recall", "mse_share", "lpips",
           "agreement", "speedup", "nfe")


def results(times: float) -> Results:
    """An evaluation in two extractors, which all figures differ from with another `times`."""
    found = Results({}, "teacher")
    found.extractors = {name: {"metrics": {"recall": f"recall_{name}"}}
                        for name in ("classifier", "vgg16")}
    found.figures["teacher"] = {"images_per_s": certain(1234.5)}
    found.figures["student"] = {name: certain(times * value) for name, value in {
        "recall_classifier": 0.71234, "recall_vgg16": 0.61234, "mse": 0.00123456,
        "mse_permuted": 0.1 / times, "lpips_vgg": 0.0123456, "lpips_alex": 0.00456,
        "label_agreement": 0.98765, "images_per_s": 123456.7, "nfe": 1}.items()}
    found.ratios = {"fd_classifier": certain(1.2345 * times), "fd_vgg16": certain(0.98765 * times)}
    return found


def write(times: float) -> None:
    """The metrics of a whole run, as its stages write them."""
    stage = Stage("prepare_data")
    stage.write_metrics("teacher", {"denoising": 0.98765 * times})
    stage.write_metrics("pairs", {"pairs": round(1_000_000 * times), "nfe": 35})
    for name in STUDENTS:
        stage.write_metrics(name, results(times).values())


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One whose two students were evaluated, committed."""
    made = make_project(tmp_path / "project")
    monkeypatch.chdir(made)
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    write(1.0)
    commit(made)
    return made


def fitting(table: str) -> list[str]:
    """The lines of a table, which must fit."""
    lines = table.rstrip("\n").splitlines()
    assert max(map(len, lines)) <= COLUMNS and len(lines) <= ROWS, table
    return lines


def test_metrics_are_a_row_a_student(project: Path) -> None:
    header, *rows = fitting(dvc(project, "metrics", "show"))
    assert set(header.split()) == {"Path", *FIGURES, "denoising", "pairs"}
    assert {row.split()[0] for row in rows} == {
        f"reports/{name}.json" for name in ("teacher", "pairs", *STUDENTS)}
    own, = (row.split() for row in rows if row.startswith("reports/kdm.json"))
    assert {"1.23", "0.988", "0.612", "0.0123", "100.0", "1", "not"} < set(own)


def test_metrics_that_differ_are_a_line_each(project: Path) -> None:
    write(0.5)
    header, *rows = fitting(dvc(project, "metrics", "diff"))
    differing = [tuple(row.split()[:2]) for row in rows]
    assert set(differing) == {
        ("reports/teacher.json", "denoising"), ("reports/pairs.json", "pairs"),
        *((f"reports/{name}.json", figure) for name in STUDENTS for figure in FIGURES[1:])}
    assert len(differing) == len(set(differing))


def test_experiments_have_twenty_figures_and_show_those_that_differ(project: Path) -> None:
    columns = dvc(project, "exp", "show", "--csv").splitlines()[0].split(",")
    parameters = dvc(project, "params", "diff", "--all", "--json", "HEAD")
    named = set(json.loads(parameters)["params.yaml"])
    metrics = [name for name in columns if name.startswith("reports/") and ":" in name
               or name in ("denoising", "pairs")]
    assert len(metrics) == 2 * len(FIGURES) + 3
    assert named - {name.removeprefix("params.yaml:") for name in columns} == set()
    fitting(dvc(project, "exp", "show", "--only-changed", "--no-pager"))
    few = json.loads(Path("reports/kdm.json").read_text())
    Path("reports/kdm.json").write_text(json.dumps({**few, "ratio_vgg16": 1.1, "recall": 0.9}))
    lines = fitting(dvc(project, "exp", "show", "--only-changed", "--no-pager"))
    assert lines[1].split() == ["Experiment", "Created", "reports/kdm.json:ratio_vgg16",
                                "reports/kdm.json:recall"]


def test_figures_of_the_only_student_have_short_names(project: Path) -> None:
    edit(project, lambda values: values["students"].pop("kdm-f"))
    few = json.loads(Path("reports/kdm.json").read_text())
    changed = {name: value if name in ("verdict", "nfe") else value * 2
               for name, value in few.items()}
    commit(project)
    Path("reports/kdm.json").write_text(json.dumps(changed))
    lines = fitting(dvc(project, "exp", "show", "--only-changed", "--no-pager"))
    assert lines[1].split() == ["Experiment", "Created", *FIGURES[1:-1]]


def test_dvc_asks_nobody_to_add_its_records(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    done = python(project, "dvc", "repro", "prepare_data")
    assert done.returncode == 0, done.stderr
    assert "Running stage 'prepare_data'" in done.stdout
    assert "git add" not in done.stdout and "auto staging" not in done.stdout
    staged = subprocess.run(["git", "diff", "--cached", "--name-only"], cwd=project, text=True,
                            env=environment(), capture_output=True, check=True).stdout
    assert staged.split() == ["dvc.lock"]
