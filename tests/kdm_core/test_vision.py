"""Torchvision in any program of an environment, also beside a build of torch that it is not for."""

import subprocess
import sys
from pathlib import Path

import pytest

from kdm_core import vision
from tests.support.project import ROOT

# What site does at the start of Python with the files that `make setup` puts into .venv.
START = "import site, sys; site.addsitedir(sys.argv[1])\n"


def run(folder: Path, program: str) -> str:
    """The output of a user's script, which knows nothing of this project."""
    done = subprocess.run([sys.executable, "-c", START + program, str(folder)], cwd=folder,
                          env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    vision.install(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("program", [
    "import torchvision; print(torchvision.models.resnet18(num_classes=3).fc.out_features)",
    "import torch; from torchvision.ops import box_iou\n"
    "print(int(3 * box_iou(*2 * [torch.tensor([[0., 0, 1, 1]])])))",
    "from diffusers import UNet2DModel\n"
    "made = UNet2DModel(sample_size=8, block_out_channels=(8,), layers_per_block=1,\n"
    "                   norm_num_groups=4, down_block_types=('DownBlock2D',),\n"
    "                   up_block_types=('UpBlock2D',)); print(made.config.in_channels)",
    "import lpips; print(len(lpips.LPIPS(net='alex', pnet_rand=True, verbose=False).lins) - 2)",
])
def test_scripts_of_users_import_what_needs_torchvision(installed: Path, program: str) -> None:
    assert run(installed, program + "\nassert 'kdm_core' not in sys.modules") == "3"


def test_the_start_of_python_imports_nothing_for_it(installed: Path) -> None:
    found = run(installed, "import importlib.util; importlib.util.find_spec('torchvision')\n"
                           "print(sorted({'torch', 'torchvision', 'typing', 'kdm_core', "
                           "'kdm_torchvision'} & set(sys.modules)))")
    assert found == "['kdm_torchvision']"


def test_the_library_and_the_environment_hook_once(installed: Path) -> None:
    run(installed, f"sys.path.insert(0, {str(ROOT)!r})\n"
                   "from kdm_core.vision import import_torchvision; import_torchvision()\n"
                   "assert 'torchvision' in sys.modules\n"
                   "hooks = [f for f in sys.meta_path if getattr(f, 'hooks', 0) == 'torchvision']\n"
                   "assert [hook.__module__ for hook in hooks] == ['kdm_torchvision'], hooks\n"
                   "import kdm_torchvision, kdm_core.vision\n"
                   "assert not kdm_core.vision.SCHEMAS")


def test_without_torchvision_nothing_happens(installed: Path) -> None:
    run(installed, "sys.path = [path for path in sys.path if 'site-packages' not in path]\n"
                   f"sys.path.insert(0, {str(ROOT)!r})\n"
                   "from kdm_core.vision import import_torchvision; import_torchvision()\n"
                   "try:\n    import torchvision\nexcept ModuleNotFoundError: pass\n"
                   "else: raise AssertionError")


def test_setup_installs_it_anew() -> None:
    """In the environment's own folder, and again when the code has changed."""
    head, recipe = (ROOT / "Makefile").read_text().partition("$(VENV)/.ready:")[2].split("\n", 1)
    assert "kdm_core/vision.py" in head.split()
    assert "$(BIN)/python -m kdm_core.vision\n" in recipe.partition("@touch $@")[0]


def test_the_program_installs_into_the_environment_that_runs_it(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "v"], check=True)
    python = tmp_path / "v/bin/python"
    subprocess.run([python, "-m", "kdm_core.vision"], cwd=ROOT, check=True)
    program = "import sys; print(sys.meta_path[0].hooks)"
    found = subprocess.run([python, "-c", program], cwd=tmp_path, capture_output=True, text=True,
                           check=True)
    assert found.stdout == "torchvision\n"
