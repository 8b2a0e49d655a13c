"""The device on which the tests marked `gpu` run: the accelerator, or the CPU where there is none.

On the CPU they are compared with float64, or with a second computation, so that they stay true
where nobody has a GPU; what needs one skips and says so. The folder needs nothing of the other
tests, since it is taken to machines that have little else (`make gpu-bundle`).
"""

from collections.abc import Iterator

import pytest
import torch

from kdm_core.compute import resolve_device


def pytest_report_header() -> str:
    device = resolve_device("auto")
    if device.type == "cuda":
        return f"device: {device}, {torch.cuda.get_device_name(device)}"
    return f"device: {device}"


@pytest.fixture(scope="session")
def device() -> torch.device:
    return resolve_device("auto")


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """An NVIDIA or AMD GPU; the test skips without."""
    if device.type != "cuda":
        pytest.skip(f"needs a CUDA device, and this machine computes on {device.type}")
    return device


@pytest.fixture(autouse=True)
def float32_is_float32() -> Iterator[None]:
    """Without TF32, to which torch rounds convolutions on NVIDIA's GPUs unless told otherwise."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
