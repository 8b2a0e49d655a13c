"""The section `compute`: where to compute."""


import torch
from pydantic import Field, field_validator

from kdm_core.compute import names_device, resolve_device
from kdm_core.config import Config
from kdm_core.errors import placed
from pipeline.params.other_names import hint


class ComputeParams(Config):
    """Where to compute. No stage depends on this section: changing it reruns nothing.

    Attributes:
        device: `auto` (the best there is), `cpu`, `cuda`, `cuda:1`, `mps`, …
        threads: CPU threads; 0 leaves the choice to torch. Results on a CPU are reproducible to
            the bit only for the same number of threads.
        deterministic: use only kernels that give the same bits every time, where torch has them;
            on GPUs others are faster.
    """

    device: str = "auto"
    threads: int = Field(0, ge=0)
    deterministic: bool = True

    @field_validator("device")
    @classmethod
    def _named(cls, device: str) -> str:
        if not names_device(device):
            meant = hint(device.partition(":")[0], ["auto", "cpu", "cuda", "mps"])
            raise ValueError(f"'{device}' is no device; it may be auto, cpu, cuda, cuda:1 or mps"
                             f"{'; ' if meant else ''}{meant}")
        return device

    def there(self) -> torch.device:
        """The device on this machine. Raises: KDMError: it is not available."""
        with placed("compute"):
            return resolve_device(self.device)
