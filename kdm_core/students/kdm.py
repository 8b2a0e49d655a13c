"""`kdm`, the Koopman Distillation Model: encoders, a linear operator, a decoder (section 4)."""

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdm_core.errors import KDMError, MismatchError
from kdm_core.labels import Labels
from kdm_core.losses.distances import Distance
from kdm_core.networks import (
    AnyNetworkConfig,
    IdentityConfig,
    Network,
    NetworkConfig,
    build_network,
    is_spatial,
)
from kdm_core.operators import OperatorConfig, build_operator
from kdm_core.samples import SampleSpec
from kdm_core.students.base import Student, StudentKind

if TYPE_CHECKING:
    from kdm_core.students.objective import Batch, LossConfig
    from kdm_core.students.trajectory import States


class KDMConfig(StudentKind):
    """Architecture of the paper's student.

    Attributes:
        encoder, decoder: the encoders have one configuration.
        encoders: whether noise and samples have an encoder each (the paper), share one that is
            told which it sees, or only the noise has one (as `direct` students had before they
            were a kind).
        timed: the networks take a time: 1 for noise, 0 for samples. A constant each, as in the
            published code, unless the encoders are shared; what is initialised from a teacher
            needs it, too.
        latent: numbers of the latent. A U-Net or transformer gives it as an image, so it is a
            multiple of height × width there (1 × 32 × 32 = 1024 in the paper's CIFAR-10 model).
        projected_channels: channels of the images that the encoders give and the decoder takes if
            a linear layer leads from them to a latent of any size and back (1 in the paper's FFHQ
            and AFHQv2 models); None for no such layer.
        operator: dense (KDM), factorised (KDM-F), continuous, or the identity.
        control: adds C_μ(y) to the pushed latent of class-conditional students (eq. after 9).
    """

    kind: Literal["kdm"] = "kdm"
    encoder: NetworkConfig
    decoder: NetworkConfig
    encoders: Literal["separate", "shared", "noise"] = "separate"
    timed: bool = False
    latent: int = Field(ge=1)
    projected_channels: int | None = Field(None, ge=1)
    operator: OperatorConfig
    control: bool = True

    @model_validator(mode="after")
    def _projection(self) -> "KDMConfig":
        if self.projected_channels is not None:
            for part in ("encoder", "decoder"):
                if not is_spatial(getattr(self, part)):
                    raise ValueError(f"projected_channels: the {part} is no network of images, so "
                                     "it gives a latent of any size by itself; leave it out")
        return self

    @property
    def takes_time(self) -> bool:
        return self.timed or self.encoders == "shared"

    def build(self, spec: SampleSpec) -> "KDM":
        return KDM(self, spec)

    def describe(self) -> str:
        return f"{self.operator.kind} Koopman operator on {self.latent} dimensions"

    def networks(self) -> dict[str, AnyNetworkConfig | IdentityConfig]:
        return {"encoder": self.encoder, "decoder": self.decoder}

    def check(self, losses: "LossConfig") -> None:
        if not (losses.reconstruction or losses.latent or losses.prediction):
            raise ValueError("losses: reconstruction, latent and prediction are all 0, so there is "
                             "nothing to learn; give one of them a weight")
        if self.encoders == "noise":
            for name in ("reconstruction", "latent"):
                if getattr(losses, name):
                    raise ValueError(f"losses.{name}: a student with model.encoders: noise has no "
                                     "latent of samples; set it to 0")
        for name in ("trajectory", "endpoint"):
            if not getattr(losses, name):
                continue
            if self.encoders != "shared":
                raise ValueError(f"losses.{name}: intermediate states need an encoder that is told "
                                 "their place; set model.encoders: shared")
            if self.operator.kind not in ("continuous", "factorised"):
                raise ValueError(f"losses.{name}: a {self.operator.kind} operator has no "
                                 "intermediate times; set model.operator.kind: continuous")


def latent_shape(config: KDMConfig, part: str, spec: SampleSpec) -> tuple[int, ...]:
    """How a network sees the latent: as an image if it maps images, as a vector otherwise.

    Raises:
        ValueError: the latent has no such shape.
    """
    network = getattr(config, part)
    if not is_spatial(network):
        return (config.latent,)
    height, width = spec.shape[1:]
    if config.projected_channels is not None:
        return (config.projected_channels, height, width)
    if config.latent % (height * width):
        # A ValueError, so that pydantic can attach it to the parameter it came from.
        raise ValueError(f"latent: {config.latent} is no multiple of height × width = "
                         f"{height * width}, which a {network.kind} needs; set projected_channels "
                         "(1 in the paper) for a linear layer between them")
    return (config.latent // (height * width), height, width)


class Encoder(nn.Module):
    """A network from samples to latents (B, d)."""

    def __init__(self, config: KDMConfig, spec: SampleSpec) -> None:
        super().__init__()
        shape = latent_shape(config, "encoder", spec)
        self.network = build_network(config.encoder, spec.sample_shape, shape,
                                     timed=config.takes_time, num_classes=spec.num_classes)
        self.project = (nn.Linear(prod(shape), config.latent)
                        if config.projected_channels is not None else nn.Identity())

    def forward(self, x: Tensor, time: Tensor | None, labels: Tensor | None) -> Tensor:
        latent: Tensor = self.project(self.network(x, time, labels).flatten(1))
        return latent


class Decoder(nn.Module):
    """A network from latents (B, d) to samples."""

    def __init__(self, config: KDMConfig, spec: SampleSpec) -> None:
        super().__init__()
        self.shape = latent_shape(config, "decoder", spec)
        self.network = build_network(config.decoder, self.shape, spec.sample_shape,
                                     timed=config.takes_time, num_classes=spec.num_classes)
        self.project = (nn.Linear(config.latent, prod(self.shape))
                        if config.projected_channels is not None else nn.Identity())

    def forward(self, z: Tensor, time: Tensor | None, labels: Tensor | None) -> Tensor:
        seen = self.project(z).unflatten(1, self.shape)
        return self.network(seen, time, labels)


class KDM(Student):
    """Its parts, all with a batch B, latents (B, d), and networks that see values of unit variance:

        encode_data: E_φ, samples → z_0
        encode_noise: E_ϕ, unit-variance noise → z_T
        push: C_η z_T + C_μ(y)
        decode: D_ψ, latents → samples

    `position` is where between samples (0) and noise (1) a state of the teacher's ODE lies; only
    students whose encoders are shared know states between the two.
    """

    config: KDMConfig
    has_latents = True
    time_of_ends: Tensor

    def __init__(self, config: KDMConfig, spec: SampleSpec) -> None:
        super().__init__(config, spec)
        self.latent = config.latent
        self.noise_encoder = Encoder(config, spec)  # of all states, where encoders are shared
        self.data_encoder = Encoder(config, spec) if config.encoders == "separate" else None
        self.operator = build_operator(config.operator, config.latent)
        self.control = None
        if spec.num_classes and config.control:
            # The same as a linear map of the one-hot label.
            self.control = nn.Embedding(spec.num_classes, config.latent)
            nn.init.zeros_(self.control.weight)
        self.decoder = Decoder(config, spec)
        if config.takes_time:
            # What the networks are told at positions 0 and 1: a teacher's weights know other times.
            self.register_buffer("time_of_ends", torch.tensor([0.0, 1.0]))
        self.has_states = self.can_refine()

    def networks(self) -> list[Network]:
        parts = [self.noise_encoder, self.data_encoder, self.decoder]
        return [part.network for part in parts if part is not None]

    def class_weights(self) -> list[tuple[Tensor, int]]:
        return super().class_weights() + (
            [(self.control.weight, 0)] if self.control is not None else [])

    def check_teacher(self, teacher: Mapping[str, Any]) -> None:
        if not self.config.takes_time:
            raise MismatchError("the teacher's network takes a time; set model.timed: true",
                                field="")

    def tell_times(self, times: list[float]) -> None:
        self.time_of_ends.copy_(torch.tensor(times))

    def eigenvalues(self) -> Tensor:
        return self.operator.eigenvalues()

    def between(
        self, start: Tensor, end: Tensor, weights: Tensor, labels: Tensor | None
    ) -> Tensor:
        a, b = self.encode_noise(start, labels), self.encode_noise(end, labels)
        w = weights.reshape(-1, 1)
        return self.decode(self.push((1 - w) * a + w * b, labels), labels)

    def time(self, position: float | Tensor, like: Tensor) -> Tensor | None:
        """What networks are told of a position, a number or (B,), in a batch such as `like`."""
        if not self.config.takes_time:
            return None
        start, end = self.time_of_ends
        time: Tensor = start + (end - start) * position
        return time.expand(like.shape[0])

    def encode(self, state: Tensor, position: float | Tensor, labels: Labels | None) -> Tensor:
        """Latents of states of unit variance (B, *shape) at positions, a number or (B,).

        Raises:
            KDMError: its encoders are not shared, so that it knows but samples and noise.
        """
        if self.config.encoders != "shared":
            raise KDMError(f"{self.config.encoders} has no encoder for all states from noise to "
                           "samples; use shared", "encoders")
        given = self.heeded(labels, state)
        return cast(Tensor, self.noise_encoder(state, self.time(position, state), given))

    def encode_data(self, samples: Tensor, labels: Labels | None) -> Tensor:
        # Divided by their deviation, so that both encoders see inputs of unit variance.
        state = samples / self.spec.sigma_data
        if self.data_encoder is None:
            return self.encode(state, 0.0, labels)
        given = self.heeded(labels, state)
        return cast(Tensor, self.data_encoder(state, self.time(0.0, state), given))

    def encode_noise(self, noise: Tensor, labels: Labels | None) -> Tensor:
        given = self.heeded(labels, noise)
        return cast(Tensor, self.noise_encoder(noise, self.time(1.0, noise), given))

    def drive(self, labels: Tensor | None) -> Tensor | None:
        """C_μ(y) (B, d) of labels (B,) int64; None for a student without."""
        return None if self.control is None else cast(Tensor, self.control(labels))

    def push(self, z: Tensor, labels: Labels | None) -> Tensor:
        return self.operator(z, self.drive(self.heeded(labels, z)))

    def decode_state(self, z: Tensor, position: float | Tensor, labels: Labels | None) -> Tensor:
        """States of unit variance (B, *shape), float32, at positions, a number or (B,)."""
        decoded: Tensor = self.decoder(z, self.time(position, z), self.heeded(labels, z))
        return decoded.to(torch.float32)

    def decode(self, z: Tensor, labels: Labels | None) -> Tensor:
        return self.decode_state(z, 0.0, labels) * self.spec.sigma_data

    def forward(self, noise: Tensor, labels: Labels | None = None) -> Tensor:
        """Samples (B, *shape) from unit-variance noise (B, *shape) (algorithm 2)."""
        given = self.heeded(labels, noise)
        return self.decode(self.push(self.encode_noise(noise, given), given), given)

    def check_steps(self, steps: int) -> None:
        if steps < 1:
            raise KDMError(f"steps: {steps} are none; use 1 or more")
        if self.config.encoders != "shared":
            raise KDMError(f"{self.config.encoders} has no encoder for all states from noise to "
                           "samples; use shared", "encoders")
        if not self.operator.continuous:
            raise KDMError(f"a {self.config.operator.kind} operator knows the way from noise to "
                           "sample as a whole and no part of it; use continuous or factorised",
                           field="operator.kind")

    def refine(self, noise: Tensor, labels: Labels | None, steps: int) -> Tensor:
        """In equal parts of the way, each from the state reached: an encoding, C_{1/steps} and a
        decoding."""
        self.check_steps(steps)
        given = self.heeded(labels, noise)
        state, drive = noise, self.drive(given)
        for left in range(steps, 0, -1):
            z = self.encode(state, left / steps, given)
            z = self.operator.advance(z, 1 / steps, drive)
            state = self.decode_state(z, (left - 1) / steps, given)
        return state * self.spec.sigma_data

    @torch.inference_mode()
    def states(
        self, noise: Tensor, positions: list[float], labels: Labels | None = None
    ) -> Tensor:
        self.check_steps(2)
        given = self.known(labels, noise)
        z, drive = self.encode_noise(noise, given), self.drive(given)
        return torch.stack([self.decode_state(self.operator.advance(z, 1 - position, drive),
                                              position, given) for position in positions], dim=1)

    def freeze_unused(self, losses: "LossConfig") -> None:
        learns = losses.reconstruction or (losses.latent and not losses.stop_gradient)
        if self.data_encoder is not None and not learns:
            self.data_encoder.requires_grad_(False)

    # What it minimises (eqs. 4–7; algorithm 1, lines 2–12)

    def terms(
        self, batch: "Batch", losses: "LossConfig", distance: Distance
    ) -> tuple[dict[str, Tensor], Tensor]:
        noise_0, noise_t = (losses.latent_noise * batch.latent_noise).unbind(1)
        z_t = self.encode_noise(batch.noise, batch.labels)
        pushed = self.push(z_t + noise_t, batch.labels)
        terms: dict[str, Tensor] = {}
        if losses.reconstruction or losses.latent:
            z_0 = self.encode_data(batch.samples, batch.labels)
            if losses.latent:
                target = z_0.detach() if losses.stop_gradient else z_0
                terms["latent"] = (target.float() - pushed.float()).square().mean()
        if losses.reconstruction:
            # One decoder call for both latents: half the kernel launches.
            both = torch.cat([z_0 + noise_0, pushed])
            twice = None if batch.labels is None else batch.labels.repeat(2)
            reconstructed, predicted = self.decode(both, twice).chunk(2)
            terms["reconstruction"], terms["prediction"] = distance(
                batch.samples, [reconstructed, predicted])
        else:
            predicted = self.decode(pushed, batch.labels)
            (terms["prediction"],) = distance(batch.samples, [predicted])
        if losses.trajectory:
            assert batch.states is not None
            terms["trajectory"] = self.trajectory(batch.states, batch.labels, distance)
        if losses.endpoint:
            assert batch.inner is not None
            state, position = batch.inner
            z = self.operator.advance(self.encode(state, position, batch.labels), position,
                                      self.drive(batch.labels))
            (terms["endpoint"],) = distance(batch.samples, [self.decode(z, batch.labels)])
        # The latent noise serves twice: no other random numbers are there for every pair.
        terms["operator"] = self.operator.penalty(batch.latent_noise[:, 0])
        return terms, predicted

    def trajectory(self, states: "States", labels: Tensor | None, distance: Distance) -> Tensor:
        """‖C_{u−v} E(x_u, u) − E(x_v, v)‖² + d(x_v, D(C_{u−v} E(x_u, u), v)), u > v: a scalar.

        The first term is averaged over all values of the latents. The second compares states in
        the range of samples (times sigma_data), where d knows how large a difference is. Both
        encodings are one call of the encoder.

        Raises:
            KDMError: the encoders are not shared, or the operator is not continuous.
        """
        twice = None if labels is None else labels.repeat(2)
        z_start, z_end = self.encode(
            torch.cat([states.start, states.end]),
            torch.cat([states.start_position, states.end_position]), twice).chunk(2)
        duration = states.start_position - states.end_position
        pushed = self.operator.advance(z_start, duration, self.drive(labels))
        latent = (z_end.float() - pushed.float()).square().mean()
        scale = self.spec.sigma_data
        decoded = self.decode_state(pushed, states.end_position, labels)
        (prediction,) = distance(scale * states.end, [scale * decoded])
        return latent + prediction
