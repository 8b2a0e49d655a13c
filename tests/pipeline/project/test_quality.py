"""The presets in full, against the quality they promise (`make test-slow`)."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.project import environment, make_project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run(folder: Path, preset: str) -> tuple[dict[str, Any], float]:
    """Run a preset in a fresh folder; its report and the seconds it took."""
    project = make_project(folder / "project", preset)
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=project, env=environment(),
                   check=True)
    report = json.loads((project / "reports/report.json").read_text())
    return report, time.monotonic() - start


def test_digits(tmp_path: Path) -> None:
    report, seconds = run(tmp_path, "digits")
    print(f"digits: {seconds:.0f} s")
    assert report["n"] >= 5000
    assert report["extractors"]["classifier"]["accuracy"] >= 0.97
    assert report["teacher"]["nfe"] == 35
    assert len(report["students"]) == 2
    for student in report["students"].values():
        assert student["nfe"] == 1
        assert student["mse"] <= 0.03 * student["mse_permuted"]
    # The one of pairs alone is close to its teacher, the one that saw real digits ahead of it, in
    # features that no loss has seen and beside digits that no training has seen.
    ratios = report["ratios"]
    for distance in ("fd_classifier", "fd_vgg16"):
        assert ratios["kdm"][distance] <= 1.4
        assert ratios["kdm-f"][distance] <= 0.9
    assert report["extractors"]["classifier"]["reference"] == "test split"
    recall = report["students"]["kdm-f"]["recall_classifier"]
    assert recall >= 0.95 * report["teacher"]["recall_classifier"]


def test_checkerboard(tmp_path: Path) -> None:
    report, seconds = run(tmp_path, "checkerboard")
    print(f"checkerboard: {seconds:.0f} s")
    for student in report["students"].values():
        assert student["mse"] <= 0.02
        assert student["on_support"] >= report["teacher"]["on_support"] - 0.02
