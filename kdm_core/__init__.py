"""Offline one-step distillation of diffusion and flow-matching models with Koopman operators.

The library knows nothing of DVC, Prefect, params.yaml or folders on a user's disk: the programs
in `stages/` give it configurations, arrays and paths. Importing any of its modules needs torch,
numpy, zarr and pydantic alone; what a single function needs beyond them (safetensors, lpips,
Pillow, matplotlib, …) is imported inside that function.
"""

__version__ = "0.1.0"
