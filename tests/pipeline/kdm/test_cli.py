"""The command `kdm`."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipeline.kdm.cli import PRESETS, app
from tests.support.project import environment


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def kdm(*arguments: str, input: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=input)


def test_command_answers_without_torch(folder: Path) -> None:
    code = ("import sys; from pipeline.kdm.cli import app\n"
            "try: app(['preset', 'list'])\n"
            "finally: assert 'torch' not in sys.modules")
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment(),
                            capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "smoke\n    The whole pipeline" in result.stdout


def test_errors_have_no_traceback(folder: Path) -> None:
    code = "from pipeline.kdm.cli import app; app(['params', 'check'])"
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment(),
                            capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: params.yaml is missing")
    assert "Traceback" not in result.stderr


def test_show() -> None:
    result = kdm("preset", "show", "smoke")
    assert result.exit_code == 0
    assert result.stdout == (PRESETS / "smoke.yaml").read_text()
    result = kdm("preset", "show", "smok")
    assert result.exit_code == 1
    assert "no preset 'smok'; there are" in result.stderr


def test_use_keeps_what_was_changed(folder: Path) -> None:
    params = folder / "params.yaml"
    assert kdm("preset", "use", "smoke").exit_code == 0
    assert params.read_bytes() == (PRESETS / "smoke.yaml").read_bytes()
    assert kdm("params", "check").stdout == "params.yaml: ok\n"
    # An unchanged preset can be had again.
    assert kdm("preset", "use", "digits").exit_code == 0
    assert list(folder.glob("params.yaml.bak*")) == []

    changes = [params.read_text() + f"# change {i}\n" for i in range(2)]
    for change in changes:
        params.write_text(change)
        refused = kdm("preset", "use", "smoke")
        assert refused.exit_code == 1
        assert "--force" in refused.stderr
        assert params.read_text() == change
        assert kdm("preset", "use", "smoke", "--force").exit_code == 0
        assert params.read_bytes() == (PRESETS / "smoke.yaml").read_bytes()
    kept = sorted(folder.glob("params.yaml.bak*"))
    assert [path.read_text() for path in kept] == changes


def test_check_names_all_problems(folder: Path) -> None:
    text = (PRESETS / "smoke.yaml").read_text()
    (folder / "other.yaml").write_text(text.replace("seed: 0", "sed: 0").replace("cpu", "7"))
    result = kdm("params", "check", "other.yaml")
    assert result.exit_code == 1
    assert "did you mean seed?" in result.stderr
    assert "compute.device" in result.stderr


def test_clean(folder: Path) -> None:
    assert "nothing" in kdm("clean").stdout
    work = folder / "data" / "work" / "teacher" / "abc"
    work.mkdir(parents=True)
    (work / "checkpoint.safetensors").write_bytes(bytes(2_000_000))
    refused = kdm("clean", input="n\n")
    assert refused.exit_code == 0
    assert "2.0 MB  data/work/teacher" in refused.stdout
    assert work.exists()
    assert kdm("clean", "--yes").exit_code == 0
    assert not (folder / "data" / "work").exists()
    assert (folder / "data").exists()


def test_version_and_completion() -> None:
    assert kdm("--version").output == f"kdm-distill {metadata.version('kdm-distill')}\n"
    asked = environment(_KDM_COMPLETE="complete_bash", COMP_WORDS="kdm pre", COMP_CWORD="1")
    done = subprocess.run([Path(sys.executable).with_name("kdm")], env=asked, text=True,
                          capture_output=True, check=True)
    assert done.stdout.split() == ["preset"]
