"""Offline one-step distillation of diffusion and flow-matching models with Koopman operators.

    student = kdm_core.train(kdm_core.PairStore.open("pairs.zarr"), steps=2000)
    images = student.sample(64, seed=0)
    student.save("my-student")
    student = kdm_core.KDM.load("my-student")   # or OWNER/NAME on the hub

It is given configurations, arrays and paths, and knows nothing of where they come from. Importing
any of its modules needs torch, numpy, zarr and pydantic alone; what a single function needs beyond
them (safetensors, lpips, Pillow, matplotlib, …) is imported inside that function.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdm_core.pairs.store import PairStore as PairStore
    from kdm_core.sharing.hub import from_pretrained as from_pretrained
    from kdm_core.sharing.hub import push_to_hub as push_to_hub
    from kdm_core.sharing.hub import save_pretrained as save_pretrained
    from kdm_core.students.base import Student as Student
    from kdm_core.students.kdm import KDM as KDM
    from kdm_core.students.train import train as train

__version__ = "0.1.0"

OFFERED = {"KDM": "kdm_core.students.kdm", "PairStore": "kdm_core.pairs.store",
           "Student": "kdm_core.students.base", "from_pretrained": "kdm_core.sharing.hub",
           "push_to_hub": "kdm_core.sharing.hub", "save_pretrained": "kdm_core.sharing.hub",
           "train": "kdm_core.students.train"}


def __getattr__(name: str) -> Any:
    # Not imported with the package, of which some modules answer faster without torch.
    if name in OFFERED:
        return getattr(import_module(OFFERED[name]), name)
    raise AttributeError(f"module 'kdm_core' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *OFFERED})
