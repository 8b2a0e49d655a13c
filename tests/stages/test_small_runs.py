"""Runs on next to nothing end with a report: what cannot be computed is absent with its reason."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdm_core.studies import StudiesConfig
from tests.support.project import edit, environment, make_project, succeeds


def images(values: Any) -> None:
    """24 images of twelve classes, two unseen pairs, all studies."""
    values["data"] = {"source": "npz", "path": "data.npz", "test_fraction": 0.1,
                      "conditional": True}
    values["studies"] = {}


def nothing(values: Any) -> None:
    """Two test images without classes, no study, no LPIPS."""
    values["data"] = {"source": "npz", "path": "plain.npz", "test_fraction": 0.08}
    values["reference"] = {"classifier": None}
    values["evaluation"] = {"extractors": [{"kind": "vgg16"}], "lpips": [], "bootstrap": 10}
    values["studies"] = dict.fromkeys(StudiesConfig.model_fields)


def points(values: Any) -> None:
    """Three points to train on and two others, two unseen pairs."""
    values["data"] = {"source": "checkerboard", "train": 3, "test": 2}
    values["reference"] = {"classifier": None}
    values["evaluation"] = {"bootstrap": 10}
    values["pairs"]["sample_dtype"] = "float32"
    values["students"]["kdm"]["losses"] = {"adversarial": 0.0}
    values["studies"] = {}


def small(values: Any) -> None:
    values["teacher"]["training"]["steps"] = 3
    values["reference"]["classifier"]["training"]["steps"] = 3
    del values["students"]["kdm-f"]
    values["students"]["kdm"]["training"] |= {"steps": 3, "warmup": 30}
    values["pairs"] |= {"train": 40, "validation": 2, "test": 2, "batch": 2, "shard": 4, "chunk": 2}


def no_constant(name: str) -> None:
    raise ValueError(f"{name} in JSON")


@pytest.mark.slow
@pytest.mark.parametrize("change", [images, nothing, points])
def test_it_ends_with_a_report(change: Any, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 1, 8, 8), dtype=np.uint8)
    np.savez(project / "data.npz", images=pixels, labels=np.repeat(np.arange(12), 2))
    np.savez(project / "plain.npz", images=pixels)
    edit(project, lambda values: (small(values), change(values)))
    subprocess.run(["kdm", "params", "check"], cwd=project, env=environment(), check=True)
    assert "Traceback" not in succeeds(project, "dvc", "repro")
    for file in (*project.glob("reports/**/*.json"), *project.glob("data/*/**/*.json")):
        json.loads(file.read_text(), parse_constant=no_constant)
    report = json.loads((project / "reports/report.json").read_text())
    notes = report["conditions"]["notes"]
    assert report["n"] == 2 and report["students"]["kdm"]["mse"] > 0
    assert "there are 40 samples to train on" in notes["train_student@kdm"]
    assert "30 steps of warm-up in a training of 3" in notes["train_student@kdm"]
    if change is nothing:
        assert report["studies"] == {"kdm": {}}
        assert any(line.startswith("LPIPS was left out") for line in report["absent"])
    else:
        assert "studies.semantics: 2 test pairs are too few" in notes["study@kdm"]
        assert {"vicinity", "interpolation", "spectrum"} <= set(report["studies"]["kdm"])
    if change is not points:
        assert any("no precision, recall, density or coverage" in line
                   for line in report["absent"])
