"""The archive for GPU machines, and that its benchmark trains what the preset trains."""

import importlib.util
import subprocess
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ruamel.yaml import YAML

from benchmarks.gpu.recipes import recipes
from benchmarks.gpu.scale import FULL
from kdm_core.students.objective import LossConfig
from tests.support.imports import ROOT


@pytest.fixture(scope="module")
def bundle() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_bundle", ROOT / "requirements/gpu_bundle.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_that_is_needed_is_pinned_and_nothing_that_is_there(bundle: ModuleType) -> None:
    pinned = bundle.locked(bundle.LOCK.read_text())
    for python in ("3.11", "3.12", "3.13"):
        found = bundle.closure((*bundle.NEEDED, *bundle.EXTRA), python)
        assert {"zarr", "numcodecs", "pydantic-core", "pluggy", "pillow"} <= found <= set(pinned)
        assert not found & {"torch", "numpy", "dvc", "prefect", "nvidia-cublas"}
    assert all("--hash=sha256:" in pinned[name] for name in found)


def test_it_has_the_code_and_fits(
    bundle: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def downloaded(names: set[str], python: str, folder: Path) -> None:
        folder.mkdir()
        for name in names:
            (folder / f"{name}-1-py3-none-any.whl").write_bytes(name.encode())

    monkeypatch.setattr(bundle, "download", downloaded)
    out = tmp_path / "bundle.tar.gz"
    bundle.build("3.12", out)
    with tarfile.open(out) as archive:
        names = set(archive.getnames())
        assert archive.getmember("gpu-bundle/run.sh").mode & 0o100
    assert {"gpu-bundle/code/kdm_core/noise.py", "gpu-bundle/code/benchmarks/gpu/__main__.py",
            "gpu-bundle/code/tests/gpu/conftest.py", "gpu-bundle/code/pyproject.toml",
            "gpu-bundle/wheels/zarr-1-py3-none-any.whl",
            "gpu-bundle/extra/torchvision-1-py3-none-any.whl"} <= names
    assert not [name for name in names if "pipeline" in name or "/tests/support" in name]
    with pytest.raises(bundle.BundleError, match=r"0\.01 MB are the limit.*parts are code/"):
        bundle.build("3.12", tmp_path / "large.tar.gz", limit_mb=0.01)
    assert not (tmp_path / "large.tar.gz").exists()


def test_git_does_not_see_it() -> None:
    done = subprocess.run(["git", "check-ignore", "-q", "gpu-bundle.tar.gz"], cwd=ROOT)
    assert done.returncode == 0


@pytest.mark.parametrize("name", ["paper", "paper-f"])
def test_the_published_recipe_is_the_presets(name: str) -> None:
    preset: dict[str, Any] = YAML(typ="safe").load(
        (ROOT / "pipeline/project/presets/cifar10.yaml").read_text())["students"][name]
    recipe = recipes(FULL)[name]
    assert recipe.config == type(recipe.config).model_validate(preset["model"])
    assert recipe.objective == LossConfig.model_validate(preset["losses"])
    assert recipe.training.items() <= preset["training"].items()
    assert FULL.batch == preset["training"]["batch"]
