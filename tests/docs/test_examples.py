"""The examples run."""

import json
import runpy
import shutil
from pathlib import Path

import matplotlib
import pytest

from tests.support.imports import ROOT


def test_pairs_of_a_function_become_a_student(tmp_path: Path) -> None:
    example = runpy.run_path(str(ROOT / "examples/distil_pairs.py"))
    assert example["main"](tmp_path, steps=300) < 0.2
    assert (tmp_path / "samples.png").stat().st_size > 1000


def test_the_notebook_runs(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells in order, without a kernel."""
    shutil.copytree(finished / "data/students", tmp_path / "data/students")
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path / "examples")
    matplotlib.use("agg")
    names: dict[str, object] = {}
    for cell in json.loads((ROOT / "examples/use_student.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"] and cell["execution_count"] is None, "clear its outputs"
            exec("".join(cell["source"]), names)
