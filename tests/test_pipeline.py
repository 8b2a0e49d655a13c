"""The real pipeline in a real DVC repository: caching, experiments, kills.

The tests of this file build on each other: the first runs the whole pipeline, the others change
something and look at which stages DVC runs again.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from kdm_core.pairs.store import PairStore
from tests.project import environment, make_project

ALL = ["prepare_data", "reference", "teacher", "sample_pairs", "filter_pairs", "train_student@kdm",
       "train_student@kdm-f", "evaluate@kdm", "evaluate@kdm-f", "study@kdm", "study@kdm-f",
       "report"]
OF_KDM = {"train_student@kdm", "evaluate@kdm", "study@kdm", "report"}


def dvc(project: Path, *arguments: str) -> str:
    """Run a DVC command that must succeed; returns what it printed."""
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=project,
                          env=environment(), text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def repro(project: Path, *arguments: str) -> set[str]:
    """`dvc repro`; returns the stages that were really run."""
    return set(re.findall(r"Running stage '(.+)'", dvc(project, "repro", *arguments)))


def edit(project: Path, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    """Change params.yaml as a user with an editor does."""
    yaml = YAML()
    path = project / "params.yaml"
    values = yaml.load(path)
    change(values)
    yaml.dump(values, path)


def results(project: Path) -> dict[str, str]:
    """Hashes of the pair store's content and of the students' weights."""
    hashes = {"pairs": PairStore.open(project / "data/pairs/pairs.zarr").content_hash()}
    for weights in sorted((project / "data").glob("*/**/weights.safetensors")):
        name = str(weights.relative_to(project))
        hashes[name] = hashlib.sha256(weights.read_bytes()).hexdigest()
    return hashes


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("pipeline") / "project")


@pytest.fixture(scope="module")
def undisturbed(project: Path) -> dict[str, str]:
    """The results of the first run, which `test_runs_whole` checks."""
    assert repro(project) == set(ALL)
    return results(project)


def test_runs_whole(project: Path, undisturbed: dict[str, str]) -> None:
    assert len(undisturbed) == 5  # pairs, classifier, teacher, two students
    report = json.loads((project / "reports/report.json").read_text())
    assert set(report["students"]) == {"kdm", "kdm-f"}
    assert report["n"] == 256
    for student in report["students"].values():
        assert student["nfe"] == 1
        assert student["mse"] < student["mse_permuted"]
        assert student["lpips_vgg"] > 0
    assert report["teacher"]["nfe"] == 9
    assert set(report["stages"]) == set(ALL) - {"report"}
    left = {path.parent.name for path in (project / "data/work").glob("*/*")}
    assert left == {"features", "kept_pairs"}


def test_runs_nothing_again(project: Path, undisturbed: dict[str, str]) -> None:
    assert repro(project) == set()
    assert dvc(project, "status").strip() == "Data and pipelines are up to date."


def test_comments_and_key_order_run_nothing(project: Path, undisturbed: dict[str, str]) -> None:
    path = project / "params.yaml"
    before = path.read_text()
    values = YAML(typ="safe").load(path)
    reordered = {key: values[key] for key in reversed(values)}
    YAML().dump(reordered, path)
    path.write_text("# a remark\n" + path.read_text())
    assert repro(project) == set()
    path.write_text(before)


def test_where_to_compute_runs_nothing(project: Path, undisturbed: dict[str, str]) -> None:
    edit(project, lambda values: values["compute"].update(device="auto"))
    assert repro(project) == set()
    edit(project, lambda values: values["compute"].update(device="cpu"))


def test_a_students_parameter_reruns_that_student(
    project: Path, undisturbed: dict[str, str]
) -> None:
    edit(project, lambda values: values["students"]["kdm"]["training"].update(lr=0.003))
    assert repro(project) == OF_KDM
    changed = results(project)
    differing = {name for name in changed if changed[name] != undisturbed[name]}
    assert differing == {"data/students/kdm/weights.safetensors"}
    # Back to what was there before: from the cache, without training.
    edit(project, lambda values: values["students"]["kdm"]["training"].update(lr=0.002))
    assert "train_student@kdm" not in repro(project)
    assert results(project) == undisturbed


def test_a_filter_reruns_from_the_mask(project: Path, undisturbed: dict[str, str]) -> None:
    edit(project, lambda values: values.update(filter={"copies": [{"quantile": 0.2}]}))
    assert repro(project, "train_student@kdm") == {"filter_pairs", "train_student@kdm"}
    mask = json.loads((project / "reports/metrics/filter_pairs.json").read_text())
    assert mask == {"pairs": 2064, "kept": 1651, "copies_pixels": 413}
    assert results(project) != undisturbed
    edit(project, lambda values: values.update(filter={}))
    assert repro(project) <= {"report"}
    assert results(project) == undisturbed


def test_the_teachers_code_reruns_from_the_teacher(
    project: Path, undisturbed: dict[str, str]
) -> None:
    code = project / "kdm_core/teachers/denoiser.py"
    code.write_text(code.read_text() + "\n# a remark\n")
    again = repro(project)
    # The code is another, so the teacher and its users run; their results are the same, so
    # students, which depend on the results, do not.
    assert again == {"teacher", "sample_pairs", "evaluate@kdm", "evaluate@kdm-f", "study@kdm",
                     "study@kdm-f", "report"}
    assert results(project) == undisturbed


def test_experiments_metrics_and_plots(project: Path, undisturbed: dict[str, str]) -> None:
    dvc(project, "exp", "run", "-n", "other-latent", "-S", "students.kdm.model.latent=16")
    table = dvc(project, "exp", "show", "--csv")
    assert "students.kdm.model.latent" in table
    assert "other-latent" in table
    assert "students.kdm.fd_classifier" in table
    difference = dvc(project, "metrics", "diff", "--json")
    assert "students.kdm.mse" in difference
    plots = dvc(project, "plots", "show", "--json")
    assert "validation_mse_ratio" in plots
    edit(project, lambda values: values["students"]["kdm"]["model"].update(latent=32))


def test_the_teachers_parameter_reruns_from_the_teacher(
    project: Path, undisturbed: dict[str, str]
) -> None:
    edit(project, lambda values: values["teacher"]["training"].update(steps=60))
    assert repro(project) == set(ALL) - {"prepare_data", "reference"}
    changed = results(project)
    same = {name for name in changed if changed[name] == undisturbed[name]}
    assert same == {"data/reference/weights.safetensors"}


def start(project: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "dvc", "repro"], cwd=project, env=environment(),
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                            start_new_session=True)


def kill_when(project: Path, ready: Callable[[], bool]) -> bool:
    """Run the pipeline and SIGKILL it, DVC and the stage, at the first instant that `ready`.

    Returns:
        False if the pipeline came to its end before that.
    """
    process = start(project)
    limit = time.monotonic() + 120
    while not ready():
        if process.poll() is not None or time.monotonic() > limit:
            return False
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def written(project: Path, pattern: str) -> list[int]:
    """When the files of a pattern were last replaced."""
    return [file.stat().st_mtime_ns for file in project.glob(pattern)]


def test_killed_stages_end_with_the_same_bytes(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    """A second fresh folder, killed again and again, ends like the first one."""
    project = make_project(tmp_path / "project")

    def shards() -> int:
        return len(list(project.glob("data/work/sample_pairs/*/pairs.zarr/index/c/*")))

    def finished(stage: str) -> bool:
        return (project / f"reports/timings/{stage}.json").exists()

    for wanted in (1, 10, 20):
        assert kill_when(project, lambda wanted=wanted: shards() >= wanted), wanted  # type: ignore[misc]
        assert not finished("sample_pairs")
        # At most the shard under way is lost, so the work goes forward.
        assert shards() >= wanted - 1

    for student in ("kdm", "kdm-f"):
        pattern = f"data/work/train_student@{student}/*/checkpoint-*.safetensors"
        for delay in (0.0, 0.1):
            before = written(project, pattern)

            def mid_training(
                pattern: str = pattern, delay: float = delay, before: list[int] = before
            ) -> bool:
                if written(project, pattern) == before:
                    return False
                time.sleep(delay)
                return True

            assert kill_when(project, mid_training), (student, delay)
            assert not finished(f"train_student@{student}")

    repro(project)
    assert results(project) == undisturbed
