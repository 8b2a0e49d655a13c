"""The real pipeline in a real DVC repository: what a change runs again, experiments."""

import hashlib
import json
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from kdm_core.pairs.store import PairStore
from tests.support.project import commit, dvc, edit, repro

ALL = ["prepare_data", "reference", "autoencoder", "teacher", "sample_pairs", "filter_pairs",
       "train_student@kdm", "train_student@kdm-f", "evaluate@kdm", "evaluate@kdm-f", "study@kdm",
       "study@kdm-f", "report"]
OF_KDM = {"train_student@kdm", "evaluate@kdm", "study@kdm", "report"}


def results(project: Path) -> dict[str, str]:
    """Hashes of the pair store's content and of the students' weights."""
    hashes = {"pairs": PairStore.open(project / "data/pairs/pairs.zarr").content_hash()}
    for weights in sorted((project / "data").glob("*/**/weights.safetensors")):
        name = str(weights.relative_to(project))
        hashes[name] = hashlib.sha256(weights.read_bytes()).hexdigest()
    return hashes


@pytest.fixture(scope="module")
def undisturbed(finished: Path) -> dict[str, str]:
    """The results of the first run, which `test_runs_whole` checks."""
    return results(finished)


def test_runs_whole(finished: Path, project: Path, undisturbed: dict[str, str]) -> None:
    log = (finished.parent / "repro.log").read_text()
    assert set(re.findall(r"Running stage '(.+)'", log)) == {"plan", *ALL}
    assert len(undisturbed) == 5  # pairs, classifier, teacher, two students
    report = json.loads((project / "reports/report.json").read_text())
    assert set(report["students"]) == {"kdm", "kdm-f"}
    assert report["n"] == 256
    for student in report["students"].values():
        assert student["nfe"] == 1
        assert student["mse"] < student["mse_permuted"]
        assert student["lpips_vgg"] > 0
    assert report["teacher"]["nfe"] == 9
    levels = json.loads((project / "reports/details/teacher.json").read_text())["check"]["levels"]
    worst = max(one["teacher"] / min(one["linear"], one["constant"]) for one in levels)
    few = {name: json.loads((project / f"reports/{name}.json").read_text())
           for name in ("teacher", "pairs")}
    assert few == {"teacher": {"denoising": float(f"{worst:.3g}")},
                   "pairs": {"pairs": 2064, "nfe": 9}}
    assert set(report["stages"]) == set(ALL) - {"report"}
    assert (project / "data/work/plan.json").is_file()
    left = {path.parent.name for path in (project / "data/work").glob("*/*")}
    assert left == {"features", "kept_pairs", "locks", "status"}


def test_runs_nothing_again(project: Path, undisturbed: dict[str, str]) -> None:
    assert repro(project) == set()
    assert dvc(project, "status").strip() == "plan:\n\talways changed"


def test_comments_and_key_order_run_nothing(project: Path, undisturbed: dict[str, str]) -> None:
    path = project / "params.yaml"
    values = YAML(typ="safe").load(path)
    reordered = {key: values[key] for key in reversed(values)}
    YAML().dump(reordered, path)
    path.write_text("# a remark\n" + path.read_text())
    assert repro(project) == set()


def test_where_to_compute_runs_nothing(project: Path, undisturbed: dict[str, str]) -> None:
    edit(project, lambda values: values["compute"].update(device="auto"))
    assert repro(project) == set()


def test_a_students_parameter_reruns_that_student(
    project: Path, undisturbed: dict[str, str]
) -> None:
    params = project / "params.yaml"
    before = params.read_text()
    edit(project, lambda values: values["students"]["kdm"]["training"].update(steps=40))
    assert repro(project) == OF_KDM
    changed = results(project)
    differing = {name for name in changed if changed[name] != undisturbed[name]}
    assert differing == {"data/students/kdm/weights.safetensors"}
    # Back to what was there before: from the cache, without training.
    params.write_text(before)
    assert "train_student@kdm" not in repro(project)
    assert results(project) == undisturbed


@pytest.mark.slow
def test_a_filter_reruns_from_the_mask(project: Path, undisturbed: dict[str, str]) -> None:
    edit(project, lambda values: values.update(filter={"copies": [{"quantile": 0.2}]}))
    assert repro(project, "train_student@kdm") == {"filter_pairs", "train_student@kdm"}
    mask = json.loads((project / "reports/details/filter_pairs.json").read_text())
    assert mask == {"pairs": 2064, "kept": 1651, "copies_pixels": 413}
    assert results(project) != undisturbed
    edit(project, lambda values: values.update(filter={}))
    assert repro(project) <= {"report"}
    assert results(project) == undisturbed


def test_experiments_metrics_and_plots(project: Path, undisturbed: dict[str, str]) -> None:
    commit(project)
    dvc(project, "exp", "run", "-n", "other-latent", "-S", "students.kdm.model.latent=16",
        "-S", "students.kdm.training.steps=40")
    table = dvc(project, "exp", "show", "--csv")
    assert "students.kdm.model.latent" in table
    assert "other-latent" in table
    assert "reports/kdm.json:ratio_classifier" in table and "reports/timings/" not in table
    difference = json.loads(dvc(project, "metrics", "diff", "--json", "HEAD", "other-latent"))
    assert {"mse_share", "recall"} <= set(difference["reports/kdm.json"])
    assert "reports/kdm-f.json" not in difference
    assert "students.kdm.model.latent" in dvc(project, "params", "diff", "HEAD", "other-latent")
    plots = dvc(project, "plots", "show", "--json")
    assert "validation_mse_ratio" in plots


@pytest.mark.slow
def test_the_teachers_parameter_reruns_from_the_teacher(
    project: Path, undisturbed: dict[str, str]
) -> None:
    edit(project, lambda values: values["teacher"]["training"].update(steps=60))
    assert repro(project) == set(ALL) - {"prepare_data", "reference"}
    changed = results(project)
    same = {name for name in changed if changed[name] == undisturbed[name]}
    assert same == {"data/reference/weights.safetensors"}
