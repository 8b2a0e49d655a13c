"""Offline one-step distillation of diffusion and flow-matching models with Koopman operators.

The library knows nothing of DVC, Prefect, params.yaml or folders on a user's disk: the programs
in `stages/` give it configurations, arrays and paths. Importing any of its modules needs torch,
numpy, zarr and pydantic alone; what a single function needs beyond them (safetensors, lpips,
Pillow, matplotlib, …) is imported inside that function.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdm_core.students.model import KDM as KDM

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Not imported with the package, of which some modules answer faster without torch.
    if name == "KDM":
        from kdm_core.students.model import KDM

        return KDM
    raise AttributeError(f"module 'kdm_core' has no attribute '{name}'")
