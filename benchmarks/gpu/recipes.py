"""The students of every kind at CIFAR-10's size, and the published recipe of KDM."""

from typing import Any, NamedTuple

from pydantic import TypeAdapter

from benchmarks.gpu.scale import Scale
from kdm_core.students import StudentConfig
from kdm_core.students.objective import LossConfig

MODEL: TypeAdapter[StudentConfig] = TypeAdapter(StudentConfig)

LPIPS = {"kind": "lpips", "net": "vgg", "pooling": "average", "resolution": 0, "mse": 0.0}
# What students that are a denoiser have no use for.
DENOISING = {"reconstruction": 0.0, "latent": 0.0, "latent_noise": 0.0, "adversarial": 0.0}
PAPER_TRAINING = {"lr": 0.0003, "warmup": 0, "schedule": "constant", "nonfinite": "zero",
                  "ema": 0.9999}
TRAINING = {"lr": 0.0005, "schedule": "constant", "clip": 1.0, "ema": 0.9999}


class Recipe(NamedTuple):
    """A student and how it is trained, as a preset says it."""

    model: dict[str, Any]
    losses: dict[str, Any]
    training: dict[str, Any] = TRAINING

    @property
    def config(self) -> StudentConfig:
        return MODEL.validate_python(self.model)

    @property
    def objective(self) -> LossConfig:
        return LossConfig.model_validate(self.losses)


def kdm(scale: Scale, operator: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "kdm", "encoder": scale.student, "decoder": scale.student,
            "encoders": "separate", "timed": True, "latent": scale.latent, "operator": operator,
            "control": False}


def recipes(scale: Scale) -> dict[str, Recipe]:
    """By name. `paper` and `paper-f` are those of the preset cifar10, the published ones; the
    others have the network of EDM's teacher, GET its own size B."""
    published = {"distance": LPIPS, "reconstruction": 1.0, "latent": 1.0, "prediction": 1.0,
                 "adversarial": 0.01, "latent_noise": 0.4}
    like_teacher = {"kind": "denoiser", "network": scale.teacher}
    seen = {**DENOISING, "distance": LPIPS}
    return {
        "paper": Recipe(kdm(scale, {"kind": "dense", "bias": True}), published, PAPER_TRAINING),
        "paper-f": Recipe(
            kdm(scale, {"kind": "factorised", "consistency": 1.0,
                        "spectrum": {"kind": "uniform", "weight": 1.0}}),
            published, PAPER_TRAINING),
        "kdm": Recipe(
            kdm(scale, {"kind": "factorised", "consistency": 1.0, "estimate": True}),
            {**published, "adversarial": 0.0, "latent_noise": 0.1}),
        "direct": Recipe({"kind": "direct", "denoiser": like_teacher}, seen),
        "hierarchical": Recipe({"kind": "hierarchical", "denoiser": like_teacher}, seen),
        "rectified_flow": Recipe(
            {"kind": "rectified_flow", "denoiser": like_teacher},
            {**DENOISING, "distance": {**LPIPS, "huber": 1.0}}),
        "mean_flow": Recipe(
            {"kind": "mean_flow", "denoiser": like_teacher},
            {**DENOISING, "distance": {"kind": "mse"}}),
        "get": Recipe(
            {"kind": "direct", "denoiser": {"kind": "denoiser", "network": scale.equilibrium}},
            {**DENOISING, "distance": {"kind": "l1"}}),
    }
