"""Students of random weights, and what is known of them."""

from typing import Any

import torch

from kdm_core import KDM
from kdm_core.compute import seeded
from kdm_core.networks import MLPConfig, NetworkConfig
from kdm_core.operators import DenseConfig, OperatorConfig
from kdm_core.samples import SampleSpec
from kdm_core.students.kdm import KDMConfig

MLP = MLPConfig(kind="mlp", width=16, blocks=2)
IMAGES = SampleSpec(kind="image", shape=[1, 8, 8], label_names=["a", "b", "c"], sigma_data=0.7)
POINTS = SampleSpec(kind="points", shape=[2], sigma_data=2.0)
PROVENANCE = {"pairs": "p" * 64, "teacher": "t" * 64, "steps": 7}


def make_student(
    network: NetworkConfig = MLP, operator: OperatorConfig | None = None,
    spec: SampleSpec = IMAGES, **options: Any,
) -> KDM:
    """A student of random weights, of which none is zero, so that every layer matters."""
    config = KDMConfig(encoder=network, decoder=network, latent=64,
                           operator=operator or DenseConfig(kind="dense"), **options)
    with seeded(0):
        student = KDM(config, spec)
        for parameter in student.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return student.eval().requires_grad_(False)


def figure(value: float, interval: list[float] | None = None) -> dict[str, Any]:
    return {"value": value, "interval": interval, "n": 5000}


EVALUATION = {
    "teacher": {"fd_classifier": figure(0.2, [0.19, 0.21]), "nfe": figure(35.0),
                "parameters": figure(4800064.0)},
    "student": {"fd_classifier": figure(0.3, [0.28, 0.32]), "nfe": figure(1.0),
                "parameters": figure(1.0), "mse": figure(0.01), "mse_permuted": figure(0.5),
                "label_agreement": figure(0.99)},
    "ratios": {"fd_classifier": figure(1.5, [1.4, 1.6])},
    "warnings": ["5,000 samples are fewer than 50,000"],
    "conditions": {"n": 5000, "dataset": "d" * 64},
}
