"""The import of torchvision, which packages of others need, beside any build of torch.

PyPI's torchvision is built for CUDA. Beside a CPU build of torch its import fails because the
schemas of two operators are missing. They are declared when torchvision is imported: by a hook
that `python -m kdm_core.vision` installs for all programs of an environment, and that this library
sets itself where it needs torchvision.

What is installed is a copy of this file, which every start of Python runs. So it imports nothing
that Python has not imported anyway, and nothing of this library.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader

COPY = "kdm_torchvision"
NAME = "torchvision"
SCHEMAS: list[object] = []  # declarations live as long as their Library object


def import_torchvision() -> None:
    """Import torchvision, if it is there, also where its compiled part cannot load."""
    hook()
    if PathFinder.find_spec(NAME) is not None:
        from importlib import import_module

        import_module(NAME)


def hook() -> None:
    """Have torchvision's operators declared whenever it is imported; torch is imported with it."""
    if not any(getattr(finder, "hooks", None) == NAME for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder)


class Finder:
    """Finds torchvision as Python does, for a loader that declares its operators first."""

    hooks = NAME

    @classmethod
    def find_spec(
        cls, name: str, path: object = None, target: object = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name) if name == NAME else None
        if spec is None or not isinstance(spec.loader, SourceFileLoader):
            return None
        spec.loader = Loader(name, spec.loader.path)
        return spec


class Loader(SourceFileLoader):
    def exec_module(self, module) -> None:  # type: ignore[no-untyped-def]
        declare_operators(self.path.rpartition("__init__")[0])
        super().exec_module(module)


def declare_operators(folder: str) -> None:
    """Declare what torchvision's compiled part would, if that is there and cannot be loaded.

    Args:
        folder: where torchvision lies.
    """
    from glob import escape, glob

    import torch

    for extension in glob(f"{escape(folder)}_C*.so"):
        try:
            torch.ops.load_library(extension)  # type: ignore[no-untyped-call]
        except OSError:
            if hasattr(torch.ops.torchvision, "nms"):  # by an import that failed later
                continue
            library = torch.library.Library(NAME, "DEF")  # type: ignore[no-untyped-call]
            for name in ("nms", "qnms"):
                library.define(  # type: ignore[no-untyped-call]
                    f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            SCHEMAS.append(library)


def install(folder: str) -> None:
    """Hook all programs of an environment.

    Args:
        folder: its site-packages, where lines of .pth files are run at Python's start.
    """
    from pathlib import Path

    Path(folder, f"{COPY}.py").write_bytes(Path(__file__).read_bytes())
    Path(folder, f"{COPY}.pth").write_text(f"import {COPY}; {COPY}.hook()\n", encoding="utf-8")


if __name__ == "__main__":
    from sysconfig import get_path

    install(get_path("purelib"))
