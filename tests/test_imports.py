"""Dependencies run one way, and the library imports on little."""

import subprocess
import sys

import pytest

from tests.support.imports import ROOT, direct_imports

LIBRARY = sorted(file.relative_to(ROOT) for file in (ROOT / "kdm_core").rglob("*.py"))

IMPORT_ALL = """
import importlib, sys
ALLOWED = {"torch", "numpy", "zarr", "pydantic"}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in REFUSED:
            raise ImportError(f"{name} is not among the library's four dependencies")

REFUSED = {"safetensors", "lpips", "torchvision", "matplotlib", "scipy", "sklearn", "PIL", "tqdm",
           "dvc", "dvclive", "prefect", "ruamel", "cleanfid", "jinja2", "stages", "pipeline",
           "pooch", "requests", "torchdiffeq", "diffusers", "huggingface_hub", "torchcfm"}
for name in ALLOWED:
    importlib.import_module(name)
sys.meta_path.insert(0, Refuse())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_the_library_imports_on_four_packages() -> None:
    names = [".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in LIBRARY]
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL, *names], cwd=ROOT, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", LIBRARY, ids=str)
def test_the_library_knows_no_stages(file: object) -> None:
    assert not [found for found in direct_imports(file) if found.parts[0] != "kdm_core"]  # type: ignore[arg-type]


def test_stages_do_not_import_each_other_or_the_flow() -> None:
    programs = [*(ROOT / "stages").glob("*/__main__.py"),
                *(file for file in (ROOT / "stages").glob("*.py")
                  if 'if __name__ == "__main__"' in file.read_text())]
    assert len(programs) == 10
    for program in programs:
        found = direct_imports(program)
        assert not {ROOT / file for file in found} & set(programs)
        assert not {file.parts[1] for file in found if file.parts[0] == "pipeline"} & {
            "flow", "kdm", "project"}
