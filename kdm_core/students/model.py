"""The Koopman Distillation Model: encoders, a linear operator, a decoder (section 4)."""

from math import prod
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from kdm_core.compute import Precision, autocast
from kdm_core.config import Config
from kdm_core.networks import NetworkConfig, build_network, is_spatial
from kdm_core.samples import SampleSpec
from kdm_core.serialization import load_model, save_model
from kdm_core.students.koopman import OperatorConfig, build_operator


class StudentConfig(Config):
    """Architecture of a student.

    Attributes:
        encoder, decoder: the two encoders share a configuration, not weights.
        latent: numbers of the latent; for a U-Net a multiple of height × width, which gives the
            latent its channels (1 × 32 × 32 = 1024 in the paper's CIFAR-10 model).
        operator: dense (KDM) or factorised (KDM-F).
        control: adds C_μ(y) to the pushed latent of class-conditional students (eq. after 9).
    """

    encoder: NetworkConfig
    decoder: NetworkConfig
    latent: int = Field(ge=1)
    operator: OperatorConfig
    control: bool = True


def latent_shape(network: NetworkConfig, latent: int, spec: SampleSpec) -> tuple[int, ...]:
    """How a network sees the latent: as an image if it maps images, as a vector otherwise."""
    if not is_spatial(network):
        return (latent,)
    height, width = spec.shape[1:]
    if latent % (height * width):
        # A ValueError, so that pydantic can attach it to the parameter it came from.
        raise ValueError(f"latent: {latent} is no multiple of height × width = {height * width}, "
                         f"which a {network.kind} needs")
    return (latent // (height * width), height, width)


class KDM(nn.Module):
    """A one-step generator: `student(noise, labels)` is a sample.

    Attributes of the forward pass, all with a batch B and latents flattened to (B, d):
        encode_data: E_φ, sample → z_0
        encode_noise: E_ϕ, unit-variance noise → z_T
        push: C_η z_T + C_μ(y)
        decode: D_ψ, latent → sample
    """

    def __init__(self, config: StudentConfig, spec: SampleSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        shape = spec.sample_shape
        encoded = latent_shape(config.encoder, config.latent, spec)
        self.decoder_in = latent_shape(config.decoder, config.latent, spec)
        classes = spec.num_classes
        self.data_encoder = build_network(config.encoder, shape, encoded, num_classes=classes)
        self.noise_encoder = build_network(config.encoder, shape, encoded, num_classes=classes)
        self.operator = build_operator(config.operator, prod(encoded))
        self.control = None
        if classes and config.control:
            # The same as a linear map of the one-hot label.
            self.control = nn.Embedding(classes, config.latent)
            nn.init.zeros_(self.control.weight)
        self.decoder = build_network(config.decoder, self.decoder_in, shape, num_classes=classes)

    def encode_data(self, samples: Tensor, labels: Tensor | None) -> Tensor:
        # Divided by their deviation, so that both encoders see inputs of unit variance.
        return self.data_encoder(samples / self.spec.sigma_data, None, labels).flatten(1)

    def encode_noise(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        return self.noise_encoder(noise, None, labels).flatten(1)

    def push(self, z: Tensor, labels: Tensor | None) -> Tensor:
        pushed: Tensor = self.operator(z)
        return pushed if self.control is None else pushed + self.control(labels)

    def decode(self, z: Tensor, labels: Tensor | None) -> Tensor:
        decoded = self.decoder(z.reshape(len(z), *self.decoder_in), None, labels)
        return decoded.to(torch.float32) * self.spec.sigma_data

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Samples (B, *shape) from unit-variance noise (B, *shape) (algorithm 2)."""
        return self.decode(self.push(self.encode_noise(noise, labels), labels), labels)

    @torch.inference_mode()
    def sample(
        self, noise: Tensor, labels: Tensor | None, precision: Precision = "auto"
    ) -> Tensor:
        """`forward` without gradients, in the given precision; float32 out."""
        with autocast(precision, noise.device):
            return self(noise, labels).to(torch.float32)  # type: ignore[no-any-return]


def save_student(folder: Path, student: KDM, provenance: dict[str, Any]) -> str:
    """Write a student as safetensors and JSON; returns its fingerprint.

    `provenance` says what it was distilled from (e.g. the pair store's fingerprint).
    """
    return save_model(folder, student, {"student": student.config.model_dump(),
                                        "samples": student.spec.model_dump(),
                                        "provenance": provenance})


def load_student(folder: Path) -> tuple[KDM, str]:
    """Read what `save_student` wrote; returns the student in eval mode and its fingerprint."""

    def build(config: dict[str, Any]) -> KDM:
        return KDM(StudentConfig.model_validate(config["student"]),
                   SampleSpec.model_validate(config["samples"]))

    return load_model(folder, build)
