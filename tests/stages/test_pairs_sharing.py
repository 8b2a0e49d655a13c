"""One project samples pairs, others use them: through DVC, and from any store."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kdm_core.errors import DataError, KDMError, MismatchError
from kdm_core.pairs.sampling import PairsConfig, plan_store, sample_shard
from kdm_core.pairs.store import PairStore
from kdm_core.samples import SampleSpec
from kdm_core.teachers import Denoiser, DenoiserConfig, save_teacher
from pipeline.params.pairs import StoredPairs
from pipeline.project.files import PRESETS
from pipeline.runtime.runner import Stage
from stages.sample_pairs import stage as sample_pairs
from stages.sample_pairs.stored_pairs import take
from tests.support.project import copy_project, dvc, edit, git, make_project, repro
from tests.support.s3_server import BUCKET, serving

DIGITS = SampleSpec(kind="image", shape=[1, 8, 8], label_names=[str(n) for n in range(10)],
                    sigma_data=0.5)


def shrink(values: dict) -> None:  # type: ignore[type-arg]
    values["reference"] = {"classifier": None}
    values["evaluation"]["extractors"] = []
    values["teacher"]["training"].update(steps=20)
    values["pairs"].update(train=400)
    values["students"] = {"kdm": values["students"]["kdm"]}
    values["students"]["kdm"]["training"].update(steps=20)


def use_shared(values: dict) -> None:  # type: ignore[type-arg]
    shrink(values)
    values["teacher"] = {"source": "folder", "folder": "shared/teacher"}
    values["pairs"] = {"source": "store", "location": "shared/pairs.zarr"}


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project whose pairs and teacher lie in a folder and in a bucket."""
    with serving():
        root = tmp_path_factory.mktemp("sharing")
        project = make_project(root / "publisher")
        edit(project, shrink)
        assert repro(project, "sample_pairs") == {
            "prepare_data", "autoencoder", "teacher", "sample_pairs"}
        dvc(project, "remote", "add", "--default", "bucket", f"s3://{BUCKET}/dvc")
        dvc(project, "remote", "add", "folder", str(root / "remote"))
        git(project, "add", "--all")
        git(project, "commit", "--quiet", "--message=pairs")
        for remote in ("bucket", "folder"):
            dvc(project, "push", "--quiet", "--remote", remote)
        yield project


def shared(project: Path, path: str = "data/pairs/pairs.zarr") -> str:
    return PairStore.open(project / path).content_hash()


def test_a_clone_pulls_and_runs_nothing(publisher: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(publisher), str(clone))
    dvc(clone, "pull", "--quiet", "prepare_data", "teacher", "sample_pairs")
    assert repro(clone, "sample_pairs") == set()
    assert shared(clone) == shared(publisher)


@pytest.mark.slow
def test_a_student_project_imports_the_pairs(publisher: Path, tmp_path: Path) -> None:
    student = make_project(tmp_path / "student")
    (student / "shared").mkdir()
    for path, name in (("data/pairs/pairs.zarr", "pairs.zarr"), ("data/teacher", "teacher")):
        dvc(student, "import", "--quiet", "--out", f"shared/{name}", str(publisher), path)
    edit(student, use_shared)
    assert "train_student@kdm" in repro(student, "train_student@kdm")
    assert shared(student) == shared(publisher)
    timing = json.loads((student / "reports/timings/sample_pairs.json").read_text())
    assert timing["content"] == shared(publisher)
    metrics = "reports/details/sample_pairs.json"
    assert (student / metrics).read_bytes() == (publisher / metrics).read_bytes()


def test_another_one_imports_them_from_a_folder(publisher: Path, tmp_path: Path) -> None:
    student = make_project(tmp_path / "student")
    dvc(student, "import", "--quiet", "--remote", "folder", "--out", "pairs.zarr", str(publisher),
        "data/pairs/pairs.zarr")
    assert shared(student, "pairs.zarr") == shared(publisher)


def test_a_store_is_few_files(publisher: Path) -> None:
    """A file and an object of DVC's for each array's shard, and one for each description."""
    store = PairStore.open(publisher / "data/pairs/pairs.zarr")
    files = [path for path in (publisher / "data/pairs/pairs.zarr").rglob("*") if path.is_file()]
    assert len(files) == 4 * store.spec.num_shards + 4 + 1


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with parameters and a teacher; stages find them there."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(PRESETS / "smoke.yaml", "params.yaml")
    save_teacher(Path("data/teacher"), make_teacher(0))
    return tmp_path


def make_teacher(seed: int, spec: SampleSpec = DIGITS) -> Denoiser:
    torch.manual_seed(seed)
    config = DenoiserConfig.model_validate(
        {"kind": "denoiser", "network": {"kind": "mlp", "width": 16, "blocks": 1}})
    return Denoiser(config, spec).eval().requires_grad_(False)


def store_of(path: Path, mark: str | None, **changes: object) -> PairStore:
    """Pairs of `make_teacher(0)`, described as those of a teacher of the fingerprint `mark`."""
    values = {"solver": {"kind": "heun", "steps": 3}, "train": 70, "validation": 6, "test": 256,
              "batch": 8, "shard": 80, "chunk": 8, "precision": "fp32"}
    teacher, cpu = make_teacher(0), torch.device("cpu")
    plan = plan_store(PairsConfig.model_validate(values), teacher, "", None, 0, cpu)
    store = PairStore.create(path, plan.model_copy(update={"teacher": mark, **changes}), {})
    for shard in range(plan.num_shards):
        store.write_shard(shard, sample_shard(plan, teacher, shard, cpu)[0])
    return store


def mark_of(project: Path) -> str:
    return str(json.loads((project / "data/teacher/config.json").read_text())["fingerprint"])


def take_from(location: object) -> None:
    take(Stage("sample_pairs"), StoredPairs(source="store", location=str(location)))


def test_pairs_are_taken_over(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = store_of(project / "other.zarr", mark_of(project))
    take_from("other.zarr")
    assert shared(project) == store.content_hash()
    assert json.loads(Path("reports/details/sample_pairs.json").read_text()) == {
        "nfe": 5, "pairs": 332}
    assert "332 pairs of other.zarr" in capfd.readouterr().err
    # They take no space, and neither store can spoil the other.
    ours = project / "data/pairs/pairs.zarr/sample/c/0/0/0/0"
    assert ours.samefile(project / "other.zarr/sample/c/0/0/0/0")
    shutil.rmtree("data/pairs")
    assert store.content_hash()
    assert not list(Path("data/work").glob("*/*"))


def test_a_killed_copy_is_gone_on_with(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    store = store_of(project / "other.zarr", mark_of(project))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Stage, "finish", die)
        take_from("other.zarr")
    [work] = Path("data/work").glob("*/*/pairs.zarr")
    done = work / "sample/c/0/0/0/0"
    before = done.stat().st_mtime_ns
    (work / "index/c/2").unlink()
    take_from("other.zarr")
    assert shared(project) == store.content_hash()
    assert Path("data/pairs/pairs.zarr/sample/c/0/0/0/0").stat().st_mtime_ns == before
    assert "starting over" not in capfd.readouterr().err


def test_unfinished_pairs_here_are_no_part_of_a_reference_to_those_elsewhere(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampling is killed, for want of space say, and then `pairs.location` is set."""
    project = copy_project(finished, tmp_path / "project")
    monkeypatch.chdir(project)
    shutil.rmtree("data/pairs")
    shutil.rmtree("data/work")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sample_pairs, "require_complete", die)
        sample_pairs.main(Stage("sample_pairs"))
    assert list(Path("data/work/sample_pairs").glob("*/pairs.zarr/sample"))
    edit(project, lambda values: values["pairs"].update(location="elsewhere"))
    sample_pairs.main(Stage("sample_pairs"))
    assert [path.name for path in Path("data/pairs/pairs.zarr").iterdir()] == ["reference.json"]


def test_pairs_of_unknown_teachers_are_told(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # How that one was solved need not be known, since it is not solved again.
    store_of(project / "other.zarr", None, solver=None, times=[])
    take_from(project / "other.zarr")
    assert "nobody wrote down which teacher" in capfd.readouterr().err
    assert json.loads(Path("reports/details/sample_pairs.json").read_text()) == {"pairs": 332}


def test_other_pairs_are_refused(project: Path) -> None:
    mark = mark_of(project)
    store_of(project / "teacher.zarr", "0" * 64)
    store_of(project / "solver.zarr", mark, solver=None, times=[])
    store_of(project / "partial.zarr", mark)
    (project / "partial.zarr/index/c/1").unlink()
    store_of(project / "damaged.zarr", mark)
    (project / "damaged.zarr/sample/c/1/0/0/0").unlink()
    store_of(project / "splits.zarr", mark, splits={"test": 1, "validation": 6, "train": 325})
    for name, kind, message in (
        ("teacher", MismatchError, "made by the teacher 000000000000.*teacher.source: folder"),
        ("solver", MismatchError, "import them again, and say it"),
        ("partial", DataError, "lacks 80 of its 332 pairs"),
        ("damaged", DataError, "pairs 80 to 160 are"),
        ("splits", KDMError, "1 test pairs, 2 are needed"),
        ("nowhere", DataError, "is no Zarr group"),
    ):
        with pytest.raises(kind, match=message):
            take_from(f"{name}.zarr")
    assert not Path("data/pairs").exists()
    large = DIGITS.model_copy(update={"shape": [1, 16, 16]})
    save_teacher(Path("data/teacher"), make_teacher(0, large))
    with pytest.raises(MismatchError, match=r"shape \[1, 8, 8\].*\[1, 16, 16\]"):
        take_from("teacher.zarr")


def test_pinned_pairs_are_those_and_no_others(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = store_of(project / "other.zarr", mark_of(project)).content_hash()
    take_from("other.zarr")
    assert f"pin it: pairs.content: {content}" in capfd.readouterr().err
    shutil.rmtree("data/pairs")
    pinned = StoredPairs(source="store", location="other.zarr", content="0" * 64)
    with pytest.raises(MismatchError, match=f"has the content {content}, and pairs.content"):
        take(Stage("sample_pairs"), pinned)
    assert not Path("data/pairs").exists()
    assert not list(Path("data/work").glob("*/*/pairs.zarr"))
    take(Stage("sample_pairs"), pinned.model_copy(update={"content": content}))
    assert shared(project) == content


def test_students_may_need_states(project: Path) -> None:
    store_of(project / "other.zarr", mark_of(project))

    def supervise(values: dict) -> None:  # type: ignore[type-arg]
        values["pairs"] = {"source": "store", "location": "other.zarr"}
        student = values["students"]["kdm"]
        student["losses"].update(trajectory=1.0)
        student["model"].update(encoders="shared", operator={"kind": "continuous"})

    edit(project, supervise)
    with pytest.raises(KDMError, match="students.kdm.losses.trajectory"):
        take_from("other.zarr")
