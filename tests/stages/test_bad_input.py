"""What a user gets wrong is one clear message, exit code 1, and works after the mend."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdm_core.pairs.store import PairStore
from pipeline.project.files import PRESETS
from tests.support.project import edit, fails, run, succeeds


def test_a_missing_and_a_broken_data_file(project: Path) -> None:
    images = project / "images.npz"
    edit(project, lambda values: values.update(data={
        "source": "npz", "path": "images.npz", "conditional": True, "test_fraction": 0.2}))
    fails(project, "dvc", "repro", "prepare_data", saying=["images.npz", "[prepare_data] error:"])
    images.write_bytes(b"PK\x03\x04 not really a zip")
    fails(project, "dvc", "repro", "prepare_data", saying=["images.npz", "[prepare_data] error:"])
    generator = np.random.default_rng(0)
    np.savez(images, images=generator.integers(0, 255, (40, 8, 8), np.uint8),
             labels=np.arange(40) % 4)
    assert "32 training and 8 test samples" in succeeds(project, "dvc", "repro", "prepare_data")


def test_a_broken_image_whose_name_is_no_utf8(tmp_path: Path) -> None:
    """Neither a status file nor JSON takes such a name as it is."""
    project, pictures = tmp_path / "project", tmp_path / "project/pictures"
    pictures.mkdir(parents=True)
    shutil.copy(PRESETS / "smoke.yaml", project / "params.yaml")
    edit(project, lambda values: values.update(
        data={"source": "folder", "path": "pictures", "test_fraction": 0.2},
        reference={"classifier": None}, evaluation={"extractors": []}))
    rng = np.random.default_rng(0)
    for number in range(20):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(pictures / f"{number}.png")
    broken, other = (pictures / os.fsdecode(name) for name in (b"b\xff.png", b"c\xfe.txt"))
    for path in (broken, other):
        path.write_bytes(b"broken")
    code, output = run(project, "stages.prepare_data")
    assert code == 1
    assert r"[prepare_data] error: pictures/b\xff.png is not a readable PNG" in output
    status = json.loads((project / "data/work/status/prepare_data.json").read_text())
    assert status["error"].startswith(r"pictures/b\xff.png is not")
    broken.unlink()
    code, output = run(project, "stages.prepare_data")
    assert code == 0, output
    note, = json.loads((project / "reports/timings/prepare_data.json").read_text())["notes"]
    assert note == r"pictures: 20 images are used, 1 other file is passed over (1 .txt): c\xfe.txt"


def test_a_typo_stops_every_stage_with_its_place(project: Path) -> None:
    edit(project, lambda values: values["students"]["kdm"]["training"].update(stepz=3))
    for stage in ("prepare_data", "report"):
        fails(project, f"stages.{stage}", saying=[
            f"[{stage}] error:", "students.kdm.training.stepz: unknown key; did you mean steps?"])
    edit(project, lambda values: values["students"]["kdm"]["training"].pop("stepz"))
    assert "didn't change" in succeeds(project, "dvc", "repro", "sample_pairs")


def test_a_teacher_that_diverges(project: Path) -> None:
    before = (project / "dvc.lock").read_text()
    edit(project, lambda values: values["teacher"]["training"].update(lr=1e30))
    fails(project, "dvc", "repro", "teacher", saying=["[teacher] error: training diverged",
                                                      "lower the learning rate"])
    edit(project, lambda values: values["teacher"]["training"].update(lr=0.003))
    # What was there before comes back from the cache.
    succeeds(project, "dvc", "repro", "sample_pairs")
    assert (project / "dvc.lock").read_text() == before


def test_a_store_of_other_parameters_in_the_way(project: Path) -> None:
    """Both where the stage works and where its result belongs."""
    pairs = project / "data/pairs/pairs.zarr"
    other = project / "other.zarr"
    shutil.copytree(pairs, other)
    content = PairStore.open(pairs).content_hash()
    edit(project, lambda values: values["pairs"].update(train=1000))
    succeeds(project, "dvc", "repro", "sample_pairs")
    assert PairStore.open(pairs).spec.count == 1320

    # A store that DVC has never seen lies where the stage goes on with its work.
    edit(project, lambda values: values["pairs"].update(train=1100))
    code, _ = run(project, "stages.sample_pairs", limit=8_000)
    assert code == 1
    work, = (project / "data/work/sample_pairs").iterdir()
    shutil.rmtree(work / "pairs.zarr")
    shutil.copytree(other, work / "pairs.zarr")
    output = succeeds(project, "dvc", "repro", "sample_pairs")
    assert "starting over" in output
    assert "splits (here" in output
    assert PairStore.open(pairs).spec.count == 1420

    edit(project, lambda values: values["pairs"].update(train=2000))
    succeeds(project, "dvc", "repro", "sample_pairs")
    assert PairStore.open(pairs).content_hash() == content


@pytest.mark.slow
def test_no_space(project: Path) -> None:
    """Files that cannot grow: the same path through the code as a full disk."""
    edit(project, lambda values: values["pairs"].update(train=2100, shard=400))
    fails(project, "stages.sample_pairs", limit=20_000,
          saying=["[sample_pairs] error: cannot write shard 0", "free some space"])
    succeeds(project, "dvc", "repro", "filter_pairs")
    fails(project, "stages.train_student", "kdm", limit=2_000_000,
          saying=["[train_student@kdm] error: cannot write", "free some space"])
    succeeds(project, "dvc", "repro", "train_student@kdm")


def test_a_damaged_result_is_named(project: Path) -> None:
    weights = project / "data/teacher/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    fails(project, "stages.sample_pairs", saying=["[sample_pairs] error:",
                                                  "data/teacher/weights.safetensors"])
    # DVC sees that the output is not what it recorded, and makes it again.
    succeeds(project, "dvc", "repro", "sample_pairs")


def test_labels_that_are_not_there(project: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 8), np.uint8)
    np.savez(project / "images.npz", images=images)
    edit(project, lambda values: values.update(data={
        "source": "npz", "path": "images.npz", "conditional": True, "test_fraction": 0.2}))
    fails(project, "stages.prepare_data", saying=["data.conditional"])
    edit(project, lambda values: values["data"].update(conditional=False))
    fails(project, "stages.prepare_data", saying=["reference.classifier", "set it to null"])


def test_a_student_that_does_not_fit_the_memory(project: Path) -> None:
    edit(project, lambda p: p["students"]["kdm"]["model"].update(latent=1_000_000))
    fails(project, "stages.train_student", "kdm",
          saying=["not enough memory", "raise students.kdm.training.accumulate"])


def test_a_student_to_start_at_that_is_another(project: Path) -> None:
    edit(project, lambda p: p["students"]["kdm-f"].update(init="data/students/kdm"))
    fails(project, "stages.train_student", "kdm-f",
          saying=["init: data/students/kdm", "model.operator"])
    edit(project, lambda p: p["students"]["kdm"].update(init="data/students/nowhere"))
    fails(project, "stages.train_student", "kdm", saying=["data/students/nowhere"])


def test_a_batch_that_processes_cannot_share(project: Path) -> None:
    def two_processes(batch: int) -> Callable[[Any], None]:
        def change(p: Any) -> None:
            p["execution"] = {"training": {"engine": "torchrun", "nproc_per_node": 2}}
            p["students"]["kdm-f"]["training"].update(batch=batch, steps=20)
        return change

    edit(project, two_processes(63))
    fails(project, "stages.train_student", "kdm-f",
          saying=["training.batch: 63 samples cannot be shared equally by 2 processes",
                  "use 62 or 64"])
    edit(project, two_processes(64))
    output = succeeds(project, "stages.train_student", "kdm-f")
    assert "on 2 × cpu" in output
    assert output.count("student ") == 1  # one of the processes speaks
    assert (project / "data/students/kdm-f/weights.safetensors").exists()


def test_a_device_that_is_not_there(project: Path) -> None:
    edit(project, lambda values: values["compute"].update(device="cuda:7"))
    fails(project, "stages.prepare_data", saying=["compute.device", "cuda:7"])
