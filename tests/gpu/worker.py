"""What each of two processes trains, started by test_processes.py.

    python -m tests.gpu.worker FOLDER
"""

import sys
from pathlib import Path

import torch

from kdm_core.compute import is_worker
from kdm_core.serialization import write_tensors
from kdm_core.training.distributed import is_main, one_failure, process_group
from kdm_core.training.launcher import launch
from kdm_core.training.loop import fit
from tests.gpu.models import task

PROCESSES = 2
KIND = "kdm"


def device_for_all() -> torch.device:
    """A GPU each where there are enough, else the CPU."""
    enough = torch.cuda.is_available() and torch.cuda.device_count() >= PROCESSES
    return torch.device("cuda") if enough else torch.device("cpu")


def main(folder: Path) -> None:
    with one_failure(), process_group(device_for_all()) as device:
        made = task(KIND, device, losses={"adversarial": 0.1})
        fit(made, folder / "two.checkpoint", "key")
        if is_main():
            write_tensors(folder / "two.safetensors",
                          dict(made.ema.shadow.named_parameters()), {"device": str(device)})


if __name__ == "__main__":
    if not is_worker():
        sys.exit(launch("tests.gpu.worker", sys.argv[1:], PROCESSES))
    torch.backends.cudnn.allow_tf32 = False
    main(Path(sys.argv[1]))
