"""The Koopman Distillation Model: encoders, a linear operator, a decoder (section 4)."""

from collections.abc import Iterator
from math import prod
from typing import Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdm_core.compute import Precision, autocast
from kdm_core.config import Config
from kdm_core.errors import KDMError
from kdm_core.labels import Labels, as_labels
from kdm_core.networks import NetworkConfig, build_network, is_spatial
from kdm_core.noise import draw
from kdm_core.operators import OperatorConfig, build_operator
from kdm_core.samples import SampleSpec


class StudentConfig(Config):
    """Architecture of a student.

    Attributes:
        encoder, decoder: the encoders have one configuration.
        encoders: whether noise and samples have an encoder each (the paper), share one that is
            told which it sees, or only the noise has one (plain knowledge distillation).
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

    encoder: NetworkConfig
    decoder: NetworkConfig
    encoders: Literal["separate", "shared", "noise"] = "separate"
    timed: bool = False
    latent: int = Field(ge=1)
    projected_channels: int | None = Field(None, ge=1)
    operator: OperatorConfig
    control: bool = True

    @model_validator(mode="after")
    def _projection(self) -> "StudentConfig":
        if self.projected_channels is not None:
            for part in ("encoder", "decoder"):
                if not is_spatial(getattr(self, part)):
                    raise ValueError(f"projected_channels: the {part} is no network of images, so "
                                     "it gives a latent of any size by itself; leave it out")
        return self

    @property
    def takes_time(self) -> bool:
        return self.timed or self.encoders == "shared"


def latent_shape(config: StudentConfig, part: str, spec: SampleSpec) -> tuple[int, ...]:
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

    def __init__(self, config: StudentConfig, spec: SampleSpec) -> None:
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

    def __init__(self, config: StudentConfig, spec: SampleSpec) -> None:
        super().__init__()
        self.shape = latent_shape(config, "decoder", spec)
        self.network = build_network(config.decoder, self.shape, spec.sample_shape,
                                     timed=config.takes_time, num_classes=spec.num_classes)
        self.project = (nn.Linear(config.latent, prod(self.shape))
                        if config.projected_channels is not None else nn.Identity())

    def forward(self, z: Tensor, time: Tensor | None, labels: Tensor | None) -> Tensor:
        seen = self.project(z).unflatten(1, self.shape)
        return self.network(seen, time, labels)


class KDM(nn.Module):
    """A one-step generator: `student(noise, labels)` is a sample.

        student = kdm_core.from_pretrained("a/students/folder")
        images = student.sample(64, seed=0)

    Its parts, all with a batch B, latents (B, d), and networks that see values of unit variance:

        encode_data: E_φ, samples → z_0
        encode_noise: E_ϕ, unit-variance noise → z_T
        push: C_η z_T + C_μ(y)
        decode: D_ψ, latents → samples

    `position` is where between samples (0) and noise (1) a state of the teacher's ODE lies; only
    students whose encoders are shared know states between the two.

    `labels` are what `kdm_core.labels` takes: a name or an integer for all of a batch, or one for
    each of its samples. A class-conditional student needs them wherever it is given noise, states
    or latents; `sample`, which draws the noise, draws those as well if they are not given. All
    raise a KDMError for what are no labels of the student's.
    """

    time_of_ends: Tensor

    def __init__(self, config: StudentConfig, spec: SampleSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        self.provenance: dict[str, Any] = {}  # of one that was loaded: what it was distilled from
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

    @property
    def label_weights(self) -> list[int] | None:
        """In which proportion labels are drawn where none are given: that of the pairs that the
        student was distilled from; None for uniformly."""
        return self.provenance.get("label_weights")

    def class_weights(self) -> list[tuple[Tensor, int]]:
        """As of `kdm_core.networks.base.Network`: those of all its networks, and C_μ."""
        parts = [self.noise_encoder, self.data_encoder, self.decoder]
        found = [weight for part in parts if part is not None
                 for weight in part.network.class_weights()]
        return found + ([(self.control.weight, 0)] if self.control is not None else [])

    def known(self, labels: Labels | None, like: Tensor) -> Tensor | None:
        """Labels (B,) int64 for a batch such as `like`, on its device; None without classes.

        Raises:
            KDMError: they are no labels of this student's.
        """
        found = as_labels(labels, self.spec.label_names, len(like), "student")
        return None if found is None else found.to(like.device)

    def heeded(self, labels: Labels | None, like: Tensor) -> Tensor | None:
        """As `known`, but for tensors in training and under a compiler, which are (B,) int64 of a
        store: a look at their values would make the device wait, or end the graph."""
        taken = isinstance(labels, Tensor) and (self.training or torch.compiler.is_compiling())
        if taken or (labels is None and not self.spec.num_classes):
            return cast(Tensor | None, labels)
        return self.known(labels, like)

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

    def refine(self, noise: Tensor, labels: Labels | None, steps: int) -> Tensor:
        """Samples (B, *shape) in `steps` equal parts of the way, each from the state reached.

        Every part is an encoding, C_{1/steps} and a decoding, so it costs as much as a sample in
        one step, which is what `steps` = 1 gives.

        Raises:
            KDMError: `steps` is not positive, or the encoders are not shared, or the operator is
                not continuous, or these are no labels of this student's.
        """
        if steps < 1:
            raise KDMError(f"steps: {steps} are none; use 1 or more")
        given = self.heeded(labels, noise)
        state, drive = noise, self.drive(given)
        for left in range(steps, 0, -1):
            z = self.encode(state, left / steps, given)
            z = self.operator.advance(z, 1 / steps, drive)
            state = self.decode_state(z, (left - 1) / steps, given)
        return state * self.spec.sigma_data

    @torch.inference_mode()
    def generate(
        self,
        noise: Tensor,
        labels: Labels | None = None,
        precision: Precision = "auto",
        steps: int = 1,
    ) -> Tensor:
        """Samples (B, *shape), float32, from unit-variance noise (B, *shape).

        Args:
            labels: of a class-conditional student: a name or an integer for all samples, or one
                for each of them.
            precision: of matrix products.
            steps: 1, or more for a student with trajectory supervision, which then refines.

        Raises:
            KDMError: this is no noise or these are no labels of this student's, or `steps` is not
                for it.
        """
        shape = tuple(self.spec.sample_shape)
        if not isinstance(noise, Tensor) or noise.shape != noise.shape[:1] + shape:
            found = tuple(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
            raise KDMError(f"noise: {found} was given; this student takes a tensor of the shape "
                           f"(B, {', '.join(map(str, shape))}), or draws the noise itself: sample")
        given = self.known(labels, noise)
        with autocast(precision, noise.device):
            if steps == 1:
                return self(noise, given).to(torch.float32)  # type: ignore[no-any-return]
            return self.refine(noise, given, steps).to(torch.float32)

    def sample(
        self,
        n: int,
        seed: int = 0,
        labels: Labels | None = None,
        precision: Precision = "auto",
        batch: int = 500,
        steps: int = 1,
    ) -> Tensor:
        """Samples (n, *shape) float32 on the student's device; images in about [-1, 1].

        Args:
            n: how many.
            seed: sample i is that of noise `kdm_core.noise.draw(seed, [i], …)`, whatever n and
                the batch are.
            labels: as of `generate`; None draws them, too, by `label_weights`.
            precision, steps: as of `generate`.
            batch: samples that are made together.

        Raises:
            KDMError: n, the labels or the seed are not such.
        """
        return torch.cat([made for _, _, made in self.batches(
            n, seed, labels, precision, batch, steps)])

    def batches(
        self,
        n: int,
        seed: int = 0,
        labels: Labels | None = None,
        precision: Precision = "auto",
        batch: int = 500,
        steps: int = 1,
    ) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        """What `sample` makes, batch by batch: noise (B, *shape) float32, labels (B,) int64, None
        without classes, and samples (B, *shape). Arguments and errors as there."""
        if n < 1 or seed < 0:
            raise KDMError(f"n and seed: {n} samples of seed {seed} cannot be made; use n ≥ 1, "
                           "seed ≥ 0")
        chosen = None if labels is None else as_labels(labels, self.spec.label_names, n, "student")
        device = next(self.parameters()).device
        for start in range(0, n, batch):
            own = range(start, min(start + batch, n))
            drawn, classes = draw(seed, own, self.spec.sample_shape, "float32",
                                  self.spec.num_classes, self.label_weights)
            noise = torch.from_numpy(drawn).to(device)
            given = (self.spec.told(torch.from_numpy(classes)) if chosen is None
                     else chosen[own.start : own.stop])
            yield noise, given, self.generate(noise, given, precision, steps)
