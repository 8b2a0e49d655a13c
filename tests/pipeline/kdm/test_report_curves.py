"""`kdm report curves`: curves for TensorBoard and for Weights & Biases, read back by these."""

import json
import sys
from collections.abc import Iterator
from math import inf, isnan
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pipeline.kdm.cli import app
from pipeline.runtime.curves import Curves

METRICS = Path("reports/curves/kdm/plots/metrics")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the curves of a teacher and of a student, as stages write them."""
    project = tmp_path / "a:project"  # which no project of wandb may be called
    project.mkdir()
    monkeypatch.chdir(project)
    for name, loss in (("teacher", 2.0), ("kdm", 1.0)):
        curves = Curves(name)
        curves({"step": 0, "loss": loss})
        curves({"step": 50, "loss": loss / 4, "validation_mse": 0.125})
        curves.end()
    return project


def export(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["report", "curves", *arguments, "--out", "out"])


def refused(*arguments: str) -> str:
    """The one message with which a command is refused; nothing is written then."""
    done = export(*arguments)
    assert done.exit_code == 1 and not Path("out").exists(), done.output
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def of_tensorboard(name: str) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself finds in the folder of a model."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(f"out/{name}")
    found.Reload()
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)]
            for tag in found.Tags()["scalars"]}


def test_tensorboard() -> None:
    pytest.importorskip("tensorboard")
    done = export("--format", "tensorboard")
    assert done.exit_code == 0, done.output
    assert done.stdout == "out: the curves of kdm, teacher\nnext: tensorboard --logdir out\n"
    assert of_tensorboard("kdm") == {"loss": [(0, 1.0), (50, 0.25)],
                                     "validation_mse": [(50, 0.125)]}
    assert of_tensorboard("teacher")["loss"] == [(0, 2.0), (50, 0.5)]


def test_one_model_alone() -> None:
    pytest.importorskip("tensorboard")
    assert export("teacher", "--format", "tensorboard").exit_code == 0
    assert [path.name for path in Path("out").iterdir()] == ["teacher"]


def test_values_that_are_not_finite_are_written_and_told() -> None:
    pytest.importorskip("tensorboard")
    (METRICS / "loss.tsv").write_text("step\tloss\n0\tnan\n50\tinf\n60\t1\n")
    done = export("kdm", "--format", "tensorboard")
    assert done.exit_code == 0, done.output
    assert done.stderr == (f"note: {METRICS}/loss.tsv: 2 of 3 values are not finite, and are "
                           "written so\n")
    (_, first), *others = of_tensorboard("kdm")["loss"]
    assert isnan(first) and others == [(50, inf), (60, 1.0)]


def records(file: Path) -> Iterator[Any]:
    """The records of a run of Weights & Biases: a log as of LevelDB, in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, record = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        size, kind = int.from_bytes(content[place + 4:place + 6], "little"), content[place + 6]
        record += content[place + 7:place + 7 + size]
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""
        place += 7 + size
        left = -place % 2**15
        place += left if left < 7 else 0  # no header is cut


def test_wandb(folder: Path) -> None:
    pytest.importorskip("wandb")
    (METRICS / "loss.tsv").write_text("step\tloss\n0\t1.0\n50\tnan\n")
    done = export("--format", "wandb")
    assert done.exit_code == 0, done.output
    assert "next: wandb sync out/wandb/offline-run-*\n" in done.stdout
    runs = {}
    for file in Path("out/wandb").glob("offline-run-*/*.wandb"):
        found = list(records(file))
        run, = (record.run for record in found if record.WhichOneof("record_type") == "run")
        assert run.project == "a-project" and not run.git.commit
        runs[run.display_name] = [
            {item.key or item.nested_key[0]: json.loads(item.value_json)
             for item in record.history.item}
            for record in found if record.WhichOneof("record_type") == "history"]
    assert set(runs) == {"kdm", "teacher"}
    first, second = runs["kdm"]
    assert (first["_step"], first["loss"]) == (0, 1.0) and "validation_mse" not in first
    assert (second["_step"], second["validation_mse"]) == (50, 0.125)
    assert isnan(float(second["loss"]))
    # Neither machine nor packages are told.
    assert not list(Path("out").rglob("*requirements*")) + list(Path("out").rglob("*metadata*"))


@pytest.mark.parametrize(("format", "module"), [
    ("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package(format: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert refused("--format", format).startswith(
        f"error: --format: {format} needs the package {format}: pip install {format} (")


def test_unknown_names() -> None:
    said = refused("kdm", "other", "../teacher", "--format", "tensorboard")
    assert "no curves of ../teacher, other in reports/curves: there are kdm, teacher;" in said
    assert "no curves of \\x1b[31m" in refused("\x1b[31m", "--format", "wandb")


def test_no_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "nothing in reports/curves: go to a project" in refused("--format", "wandb")
    assert "there are none; training" in refused("kdm", "--format", "wandb")


def test_nothing_is_overwritten() -> None:
    Path("out").mkdir()
    done = export("--format", "wandb")
    assert done.exit_code == 1 and not list(Path("out").iterdir())
    assert done.stderr == "error: --out: out exists already; name a new folder\n"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"step\tloss\n", b"step\n0\n50\n", *(
    b"step\tloss\n" + rows for rows in (
        b"0\t1\t2\n", b"0\t1\n50", b"0\tmuch\n", b"0.5\t1\n", b"-1\t1\n", b"50\t1\n0\t1\n",
        b"0\t1\n0\t1\n", b"nan\t1\n", b"inf\t1\n", b"1e300\t1\n"))], ids=repr)
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_damaged_files(content: bytes) -> None:
    (METRICS / "loss.tsv").write_bytes(content)
    said = refused("kdm", "--format", "wandb")
    assert f"{METRICS}/loss.tsv is damaged (" in said
    assert "delete it and run `dvc repro train_student@kdm`" in said


def test_a_file_that_is_missing() -> None:
    (METRICS / "loss.tsv").unlink()
    assert f"{METRICS}/loss.tsv is missing: run `dvc repro" in refused("kdm", "--format", "wandb")
