"""The measurement itself, with networks of no size, and what it needs."""

import ast
import json
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as program
from benchmarks.gpu.arithmetic import PAIRS, STEPS
from benchmarks.gpu.results import Results
from kdm_core.errors import KDMError

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
ALLOWED = {"benchmarks", "kdm_core", "torch", "numpy", "pydantic", "torchvision",
           # and of Python itself
           "argparse", "collections", "contextlib", "functools", "importlib", "itertools",
           "pathlib", "platform", "statistics", "subprocess", "sys", "tempfile", "time", "typing",
           "unittest", "xml"}


def test_a_trial_measures_every_part_and_is_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "trial.json"
    assert program.main(["--tiny", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["trial"] is True
    assert list(found["parts"]) == sorted(program.PARTS[1:])
    for part, rows in found["parts"].items():
        assert rows, part
        for row in rows:
            assert "why_not" not in row, row
            assert row["device"] and row["torch"] == torch.__version__ and row["precision"]
    rates = {row["name"]: row for row in found["parts"]["training"]}
    assert {name.split(",")[0] for name in rates} == {
        "paper", "paper-f", "kdm", "direct", "hierarchical", "rectified_flow", "mean_flow", "get"}
    assert all(row["tflop_per_step"] > 0 and row["steps_per_s"] > 0 for row in rates.values())
    hours = {row["name"]: row["hours"] for row in found["parts"]["arithmetic"]}
    assert hours[f"{STEPS:,} steps: paper, fp32"] == pytest.approx(
        STEPS / rates["paper, fp32"]["steps_per_s"] / 3600)
    assert sum(name.startswith(f"{PAIRS:,} pairs") for name in hours) == 3
    capsys.readouterr()
    assert program.main(["--table", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "A trial of the code" in printed and "## training" in printed
    # What is there is not measured again, and is not taken for results of another kind.
    written = out.read_bytes()
    assert program.main(["--tiny", "--only", "sampling", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["parts"] == json.loads(written)["parts"]
    with pytest.raises(KDMError, match="of another kind.*--anew"):
        Results(out, found["machine"], trial=False, anew=False)


def test_a_trial_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(KDMError, match="a trial is no result"):
        program.main(["--tiny", "--out", "docs/results/gpu.json"])


def test_without_a_gpu_nothing_is_measured(
    device: torch.device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if device.type != "cpu":
        pytest.skip(f"there is a {device.type} device here")
    assert program.main(["--out", str(tmp_path / "none.json")]) == 0
    assert capsys.readouterr().out == "no GPU here: nothing was measured\n"
    assert not list(tmp_path.iterdir())


def test_what_fails_or_has_no_time_is_said_and_tried_again(tmp_path: Path) -> None:
    bench = program.Bench(torch.device("cpu"), program.FULL)
    results = Results(tmp_path / "results.json", bench.machine, trial=False, anew=False)

    def fail() -> program.Row:
        raise RuntimeError("out of memory")

    jobs = [program.Job("fails", 1.0, fail), program.Job("long", 1e9, fail),
            program.Job("works", 1.0, lambda: {"precision": "fp32", "images_per_s": 2.0})]
    now = program.time.monotonic()
    assert program.do("sampling", jobs, bench, results, now + 100) == ["sampling: fails"]
    kept = {row["name"]: row for row in json.loads(results.path.read_text())["parts"]["sampling"]}
    assert kept["fails"]["why_not"] == "RuntimeError: out of memory"
    assert kept["long"]["why_not"] == program.NO_TIME
    assert kept["works"]["images_per_s"] == 2.0
    assert [results.has("sampling", name) for name in kept] == [False, False, True]


def test_it_needs_the_library_alone() -> None:
    files = [*(ROOT / "benchmarks/gpu").glob("*.py"), ROOT / "benchmarks/__init__.py"]
    assert len(files) > 10
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
                     [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
            assert {name.split(".")[0] for name in names} <= ALLOWED, file
            assert all(not name.startswith("benchmarks.") or name.startswith("benchmarks.gpu")
                       for name in names), file
