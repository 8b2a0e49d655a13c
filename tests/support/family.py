"""Students that are a teacher's denoiser, of random weights, and pairs to train them on."""

from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from kdm_core.pairs.reading.resident import ResidentReader
from kdm_core.pairs.reading.whole import Pairs
from kdm_core.samples import SampleSpec
from kdm_core.students import Student, StudentConfig
from kdm_core.students.denoising import DenoisingStudent
from kdm_core.students.hierarchical import Hierarchical
from kdm_core.students.objective import LossConfig
from kdm_core.students.training import StudentTask
from kdm_core.teachers import TrainableConfig, build_teacher
from kdm_core.teachers.base import Teacher
from kdm_core.training.config import TrainingConfig

IMAGES = SampleSpec(kind="image", shape=[1, 8, 8], label_names=["a", "b", "c"], sigma_data=0.5)
POINTS = SampleSpec(kind="points", shape=[2], sigma_data=2.0)
MLP = {"kind": "mlp", "width": 16, "blocks": 2}
UNET = {"kind": "unet", "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": []}
SONG = {"kind": "song_unet", "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4],
        "dropout": 0.0}
ALPHAS = torch.linspace(0.999, 0.01, 20, dtype=torch.float64).tolist()
TEACHERS: dict[str, dict[str, Any]] = {
    "edm": {"kind": "denoiser", "network": SONG},
    "mlp": {"kind": "denoiser", "network": MLP},
    "vp": {"kind": "denoiser", "network": UNET, "preconditioning": {"kind": "vp"}},
    "discrete": {"kind": "denoiser", "network": UNET, "grid": {"kind": "timesteps"},
                 "preconditioning": {"kind": "discrete", "prediction": "epsilon",
                                     "alphas_cumprod": ALPHAS}},
    "flow": {"kind": "flow_matching", "network": UNET},
}
QUIET = {"adversarial": 0.0, "reconstruction": 0.0, "latent": 0.0, "latent_noise": 0.0}
ENDPOINT = LossConfig.model_validate({**QUIET, "endpoint": 0.5})


def teacher(name: str, spec: SampleSpec = IMAGES) -> Teacher:
    torch.manual_seed(0)
    config: TrainableConfig = TypeAdapter(TrainableConfig).validate_python(TEACHERS[name])
    found = build_teacher(config, spec).eval()
    for value in found.parameters():
        nn.init.normal_(value, std=0.1)
    return found


def student(kind: str, like: Teacher, **model: Any) -> DenoisingStudent:
    """A student of a teacher, at its weights."""
    config: StudentConfig = TypeAdapter(StudentConfig).validate_python({"kind": kind, **model})
    found = config.completed(like.config.model_dump()).build(like.spec)
    assert isinstance(found, DenoisingStudent)
    found.network.load_state_dict(like.network.state_dict())  # type: ignore[union-attr,operator]
    return found.eval()


def bent(found: DenoisingStudent) -> Hierarchical:
    """The same with an operator that does something."""
    assert isinstance(found, Hierarchical)
    generator = torch.Generator().manual_seed(3)
    for value in found.operator.parameters():
        value.data = 0.03 * torch.randn(value.shape, generator=generator)
    return found


def pairs(count: int = 40, spec: SampleSpec = IMAGES) -> Pairs:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, *spec.shape, generator=generator)
    states = torch.randn(count, 3, *spec.shape, generator=generator).to(torch.float16)
    return Pairs(noise, noise.tanh(), torch.arange(count) % 3, states,
                 torch.tensor([0.75, 0.5, 0.25]))


def task(made: Student, losses: LossConfig, spec: SampleSpec = IMAGES) -> StudentTask:
    config = TrainingConfig.model_validate({
        "steps": 12, "batch": 8, "lr": 3e-3, "ema": 0.9, "precision": "fp32",
        "checkpoint_every": 4, "log_every": 4})
    reader = ResidentReader.of(pairs(spec=spec), 8, seed=0)
    return StudentTask(made, losses, config, reader, pairs(4, spec), seed=0)


def noise_and_labels(n: int = 5) -> tuple[Tensor, Tensor]:
    found = pairs(n)
    return found.noise, found.labels
