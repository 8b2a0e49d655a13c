"""Small teachers and students of every kind, with weights of which none is zero."""

import copy
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from kdm_core.compute import seeded
from kdm_core.pairs.reading.resident import ResidentReader
from kdm_core.pairs.reading.whole import Pairs
from kdm_core.samples import SampleSpec
from kdm_core.students import Student, StudentConfig
from kdm_core.students.objective import Batch, LossConfig
from kdm_core.students.training import StudentTask
from kdm_core.teachers import Teacher, TrainableConfig, build_teacher
from kdm_core.training.config import TrainingConfig

M = TypeVar("M", bound=nn.Module)

SPEC = SampleSpec(kind="image", shape=[3, 8, 8], label_names=["a", "b", "c"], sigma_data=0.5)
SONG = {"kind": "song_unet", "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4],
        "dropout": 0.0}
TEACHERS: dict[str, dict[str, Any]] = {
    "denoiser": {"kind": "denoiser", "network": SONG},
    "flow matching": {"kind": "flow_matching", "network": {
        "kind": "unet", "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": []}},
}
GET = {"kind": "get", "width": 16, "injection": 1, "heads": 2, "mlp_ratio": 2, "iterations": 2}
OWN = {"denoiser": TEACHERS["denoiser"]}
STUDENTS: dict[str, dict[str, Any]] = {
    "kdm": {"kind": "kdm", "encoder": SONG, "decoder": SONG, "latent": 64, "timed": True,
            "operator": {"kind": "dense"}},
    "kdm-f": {"kind": "kdm", "encoder": SONG, "decoder": SONG, "latent": 64,
              "operator": {"kind": "factorised", "spectrum": {"kind": "uniform"}}},
    "direct": {"kind": "direct", **OWN},
    "hierarchical": {"kind": "hierarchical", **OWN},
    "rectified_flow": {"kind": "rectified_flow", **OWN},
    "mean_flow": {"kind": "mean_flow", **OWN},
    "get": {"kind": "direct", "denoiser": {"kind": "denoiser", "network": GET}},
}
NO_LATENTS = {"reconstruction": 0.0, "latent": 0.0, "latent_noise": 0.0}


def lively(module: M) -> M:
    """With noise on all weights: layers that start at zero compute nothing to compare."""
    for parameter in module.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return module


def teacher(name: str) -> Teacher:
    with seeded(0):
        config: TrainableConfig = TypeAdapter(TrainableConfig).validate_python(TEACHERS[name])
        return lively(build_teacher(config, SPEC)).eval()


def student(name: str) -> Student:
    with seeded(0):
        config: StudentConfig = TypeAdapter(StudentConfig).validate_python(STUDENTS[name])
        return lively(config.build(SPEC)).eval()


def losses(name: str, **changes: Any) -> LossConfig:
    of_kind = {} if name.startswith("kdm") else NO_LATENTS
    return LossConfig.model_validate({"adversarial": 0.0, **of_kind, **changes})


def pairs(count: int, device: torch.device) -> Pairs:
    """As they lie on a device, and made on the CPU, so that they are the same everywhere."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(count, *SPEC.sample_shape, generator=generator)
    samples = torch.randint(256, noise.shape, generator=generator, dtype=torch.uint8)
    return Pairs(noise.half().to(device), samples.to(device), (torch.arange(count) % 3).to(device))


def batch(count: int, latent: int, device: torch.device, dtype: torch.dtype) -> Batch:
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(count, *SPEC.sample_shape, generator=generator, dtype=torch.float64)
    drawn = torch.randn(count, 2, latent, generator=generator, dtype=torch.float64)
    return Batch(noise.to(device, dtype), noise.tanh().flip(0).to(device, dtype),
                 (torch.arange(count) % 3).to(device), drawn.to(device, dtype))


def task(name: str, device: torch.device, steps: int = 6, **changes: Any) -> StudentTask:
    """A short training on a device."""
    loss = losses(name, **changes.pop("losses", {}))
    config = TrainingConfig.model_validate({
        "steps": steps, "batch": 8, "lr": 1e-3, "clip": 1.0, "ema": 0.9, "precision": "fp32",
        "compile": "off", "checkpoint_every": 2, "log_every": 2, **changes})
    reader = ResidentReader.of(pairs(32, device), config.batch, seed=0)
    seen = pairs(8, device)
    held_out = Pairs(seen.noise.float(), seen.samples / 127.5 - 1, seen.labels)
    found = StudentTask(student(name).to(device), loss, config, reader, held_out, seed=0)
    for group in found.optimizer.adam.param_groups:
        # Adam makes full steps of gradients that are nothing but rounding.
        group["eps"] = 1e-4
    return found


def exact(module: M) -> M:
    """A copy in float64 on the CPU, to compare with.

    What teachers round to float32 on the way to their network is widened again by its layers.
    """
    found = copy.deepcopy(module).cpu().double()
    for layer in found.modules():
        layer.register_forward_pre_hook(widened)
    return found


def widened(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.double() if isinstance(value, Tensor) and value.is_floating_point()
                 else value for value in inputs)


def deviation(found: Tensor, expected: Tensor) -> float:
    """The root of the mean squared difference, over that of what is expected."""
    expected = expected.detach().double().cpu()
    return float((found.detach().double().cpu() - expected).norm() / expected.norm().clamp(1e-12))
