"""Checks of the devices, against what the parameters ask of them."""

import shutil
from pathlib import Path

import psutil
import torch

from kdm_core.compute import has_native_bf16, resolve_device
from kdm_core.errors import KDMError
from pipeline.kdm.checks.finding import Finding, ok, problem, warning
from pipeline.params.execution import LocalSampling, TorchrunTraining
from pipeline.params.run import Params

DRIVER = Path("/proc/driver/nvidia/version")


def check_gpu() -> list[Finding]:
    """GPUs, their driver, and a build of torch that can use them."""
    has_driver = DRIVER.exists() or shutil.which("nvidia-smi") is not None
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return [ok("GPU", f"{len(names)} × {', '.join(sorted(set(names)))}, CUDA "
                   f"{torch.version.cuda}")]
    if torch.backends.mps.is_available():
        return [ok("GPU", "Apple's, through MPS")]
    if not has_driver:
        return [ok("GPU", "none; stages compute on the CPU")]
    if torch.version.cuda is None:
        return [warning("GPU", f"there is an NVIDIA driver, but torch {torch.__version__} is a "
                        "build for CPUs", "install PyPI's build: pip install "
                        f"--force-reinstall torch=={torch.__version__.partition('+')[0]}")]
    return [warning("GPU", "there is an NVIDIA driver, but torch cannot use it: too old for CUDA "
                    f"{torch.version.cuda}, or this process may not see the GPU",
                    "update the driver; look at nvidia-smi and CUDA_VISIBLE_DEVICES")]


def check_device(params: Params) -> list[Finding]:
    """The device that the parameters ask for, and whether bfloat16 is fast on it."""
    try:
        device = resolve_device(params.compute.device)
    except KDMError as error:
        return [problem("device", str(error), "set compute.device: auto")]
    bf16 = "in hardware" if has_native_bf16(device) else "not in hardware"
    return [ok("device", f"{params.compute.device} is {device}; bfloat16 {bf16}, so precision: "
               f"auto is {'bf16' if has_native_bf16(device) else 'fp32'}")]


def check_cores(params: Params) -> list[Finding]:
    """Threads and processes on a CPU against its cores."""
    cores = psutil.cpu_count() or 1
    threads = params.compute.threads or torch.get_num_threads()
    text = f"{threads} threads a process, {cores} cores"
    if (device := usable(params)) is None or device.type != "cpu":
        return [ok("cores", text)]
    asked = {f"execution.{name}": count for name, count in processes(params).items()}
    over = [f"{name}: {count} processes × {threads} threads" for name, count in asked.items()
            if count * threads > cores]
    if over:
        return [warning("cores", f"{'; '.join(over)} are more than the {cores} cores",
                        "lower compute.threads or the number of processes")]
    return [ok("cores", text)]


def check_processes(params: Params) -> list[Finding]:
    """Processes against GPUs: each needs one of its own."""
    device = usable(params)
    if device is None or device.type == "cpu":
        return []
    count = torch.cuda.device_count() if device.type == "cuda" and device.index is None else 1
    return [problem(f"execution.{name}", f"{asked} processes need a GPU each, and {device} is "
                    f"{count}", f"ask for {count} at most, or for compute.device: cuda or cpu")
            for name, asked in processes(params).items() if asked > count]


def processes(params: Params) -> dict[str, int]:
    """How many processes of this machine the parameters ask for, by the section that does."""
    sampling, training = params.execution.sampling, params.execution.training
    here = (sampling.workers or 1) if isinstance(sampling, LocalSampling) else 1
    own = training.nproc_per_node if isinstance(training, TorchrunTraining) else None
    return {"sampling": here, "training": own or 1}


def usable(params: Params) -> torch.device | None:
    """The device, if there is such a one here."""
    try:
        return resolve_device(params.compute.device)
    except KDMError:
        return None
