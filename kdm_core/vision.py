"""The import of torchvision, which packages of others need, beside any build of torch."""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch


def import_torchvision() -> None:
    """Import torchvision, if it is there, also where its compiled part cannot load.

    PyPI's torchvision is built for CUDA. Beside a CPU build of torch its import fails because the
    schemas of two operators are missing; nothing here uses either, so they are declared.
    """
    spec = importlib.util.find_spec("torchvision")
    if "torchvision" in sys.modules or spec is None or spec.origin is None:
        return
    for extension in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(extension)  # type: ignore[no-untyped-call]
        except OSError:
            library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
            for name in ("nms", "qnms"):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            SCHEMAS.append(library)
    importlib.import_module("torchvision")


# Declarations live as long as their Library object.
SCHEMAS: list[torch.library.Library] = []
