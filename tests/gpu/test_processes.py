"""Two processes train what one does: by NCCL on two GPUs, by gloo where there are none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdm_core.serialization import read_tensors
from kdm_core.training.loop import fit
from tests.gpu.models import deviation, task
from tests.gpu.worker import KIND, PROCESSES

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]


def test_two_processes_train_as_one(device: torch.device, tmp_path: Path) -> None:
    if device.type != "cpu" and torch.accelerator.device_count() < PROCESSES:
        pytest.skip(f"needs {PROCESSES} GPUs, and this machine has "
                    f"{torch.accelerator.device_count()}")
    done = subprocess.run([sys.executable, "-m", "tests.gpu.worker", tmp_path], cwd=ROOT,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
                          capture_output=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    found, about = read_tensors(tmp_path / "two.safetensors")
    assert torch.device(about["device"]).type == device.type
    alone = task(KIND, device, losses={"adversarial": 0.1})
    fit(alone, tmp_path / "one.checkpoint", "key")
    for name, value in alone.ema.shadow.named_parameters():
        assert deviation(found[name], value) < 1e-3, name
