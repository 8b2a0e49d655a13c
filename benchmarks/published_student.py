"""A student's training step the way the published code does it, for comparison only.

Written from how the published implementation (github.com/azencot-group/KDM) works, in words of our
own: float32 throughout and the default memory format; attention by einsum with the full matrix of
weights; resampling by explicit filters in grouped convolutions; biases added after the
convolutions; the decoder called once for each latent; LPIPS that computes the features of both
images of both pairs; Adam that is not fused; averages and the check for non-finite gradients
parameter by parameter; the eigenvalues of a penalised dense operator by a general solver in every
step. Weights are those of one of our students, so that both ways can be shown to do the same work.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdm_core.losses.trunks import DEVIATION, LAYOUTS, MEAN, read_weights
from kdm_core.networks.edm_blocks import Resample, UNetBlock
from kdm_core.networks.song_unet import SongUNet
from kdm_core.students.kdm import KDM

# Networks


def convolve(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution whose bias is added to its result."""
    assert layer.bias is not None
    made = F.conv2d(x, layer.weight, padding=layer.padding)
    return made.add_(layer.bias[:, None, None])


def resample(direction: str, x: Tensor) -> Tensor:
    """Twice or half the size by a box filter, one group a channel."""
    taps = x.new_full((x.shape[1], 1, 2, 2), 0.25)
    if direction == "up":
        return F.conv_transpose2d(x, 4 * taps, stride=2, groups=x.shape[1])
    return F.conv2d(x, taps, stride=2, groups=x.shape[1])


class EinsumBlock(nn.Module):
    """The block of a DDPM++ U-Net without a time or label."""

    def __init__(self, block: UNetBlock) -> None:
        super().__init__()
        assert block.affine is None and block.heads <= 1 and block.style.filter == "box"
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        block = self.block
        h = self.resampled(F.silu(block.norm0(x)))
        h = F.silu(block.norm1(convolve(block.conv0, h)))
        h = convolve(block.conv1, F.dropout(h, block.style.dropout, self.training))
        skip = self.resampled(x)
        if isinstance(block.skip, nn.Conv2d):
            skip = convolve(block.skip, skip)
        h = h.add_(skip) * block.style.skip_scale
        return self.attended(h) * block.style.skip_scale if block.heads else h

    def resampled(self, x: Tensor) -> Tensor:
        kind = self.block.resample
        return resample(kind.direction, x) if isinstance(kind, Resample) else x

    def attended(self, x: Tensor) -> Tensor:
        qkv = convolve(self.block.qkv, self.block.norm2(x))
        q, k, v = qkv.reshape(len(x), x.shape[1], 3, -1).unbind(2)
        weights = torch.einsum("bcq,bck->bqk", q, k / x.shape[1] ** 0.5).softmax(dim=2)
        h = torch.einsum("bqk,bck->bcq", weights, v)
        return convolve(self.block.proj, h.reshape(x.shape)).add_(x)


class EinsumUNet(nn.Module):
    """A DDPM++ U-Net without a time or label, on a `SongUNet`'s weights."""

    def __init__(self, network: SongUNet) -> None:
        super().__init__()
        assert not network.conditioned and network.config.encoder == "standard"
        self.enc, self.dec = (nn.ModuleDict({
            name: EinsumBlock(layer) if isinstance(layer, UNetBlock) else layer
            for name, layer in half.items()}) for half in (network.enc, network.dec))

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for layer in self.enc.values():
            x = layer(x) if isinstance(layer, EinsumBlock) else convolve(layer, x)
            skips.append(x)
        for name, layer in self.dec.items():
            if "block" in name:
                x = torch.cat([x, skips.pop()], dim=1)
            x = convolve(layer, F.silu(x)) if name.endswith("aux_conv") else layer(x)
        return x


class TimedMLP(nn.Module):
    """The published network for points: linear layers with Swish, a constant time as an input."""

    def __init__(self, sizes: Sequence[int], time: float, ends_active: bool) -> None:
        super().__init__()
        self.time, self.ends_active = time, ends_active
        inputs = [sizes[0] + 1, *sizes[1:-1]]
        self.layers = nn.ModuleList(
            nn.Linear(c_in, c_out) for c_in, c_out in zip(inputs, sizes[1:], strict=True))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, x.new_full((len(x), 1), self.time)], dim=1)
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if self.ends_active or index < len(self.layers) - 1:
                x = torch.sigmoid(x) * x
        return x


def as_published(network: nn.Module) -> nn.Module:
    """The network with the same weights, run the published way; MLPs stay what they are."""
    return EinsumUNet(network) if isinstance(network, SongUNet) else network


# Losses


class PairwiseLPIPS(nn.Module):
    """LPIPS of VGG16 with average pooling, at the images' own size: (B, 3, H, W) twice → scalar."""

    def __init__(self) -> None:
        super().__init__()
        weights, self.calibration = read_weights("vgg")
        remaining = iter(weights)
        self.blocks = nn.ModuleList()
        for block in LAYOUTS["vgg"].blocks:
            layers: list[nn.Module] = []
            for convolution in block:
                kernel, bias = next(remaining).values()
                layer = nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1)
                layer.load_state_dict({"weight": kernel, "bias": bias})
                layers += [nn.AvgPool2d(2)] if convolution.pooled else []
                layers += [layer, nn.ReLU(inplace=True)]
            self.blocks.append(nn.Sequential(*layers))
        self.requires_grad_(False)

    def features(self, images: Tensor) -> list[Tensor]:
        mean, deviation = (images.new_tensor(v).reshape(1, 3, 1, 1) for v in (MEAN, DEVIATION))
        x = (images - mean) / deviation
        found = []
        for block in self.blocks:
            x = block(x)
            found.append(x / ((x**2).sum(dim=1, keepdim=True) + 1e-20).sqrt())
        return found

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        pairs = zip(self.features(a), self.features(b), self.calibration, strict=True)
        terms = [((x - y) ** 2 * w[:, None, None]).sum(dim=1).mean() for x, y, w in pairs]
        return torch.stack(terms).sum()


def mean_square(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b) ** 2).mean()


def spectral_penalty(matrix: Tensor, targets: Tensor) -> Tensor:
    """Mean distance of the eigenvalues from targets, with gradients through a general solver."""
    return (torch.linalg.eigvals(matrix) - targets).abs().mean()


# The step


class Drawn(NamedTuple):
    """The random numbers of a step: noise of unit variance for z_0 and for z_T, each (B, d)."""

    data: Tensor
    noise: Tensor


class PublishedStudent(nn.Module):
    """Encoders, operator and decoder of a student that takes no labels, run the published way."""

    def __init__(self, data_encoder: nn.Module, noise_encoder: nn.Module, operator: nn.Module,
                 decoder: nn.Module, latent_shape: Sequence[int], scale: float) -> None:
        """`scale`: samples are divided by it for the encoder, as in ours; 1 as published."""
        super().__init__()
        self.data_encoder, self.noise_encoder = data_encoder, noise_encoder
        self.operator, self.decoder = operator, decoder
        self.latent_shape, self.scale = latent_shape, scale

    @classmethod
    def of(cls, student: KDM) -> "PublishedStudent":
        """With a copy of the weights of one of our students, in the default memory format."""
        own = copy.deepcopy(student).to(memory_format=torch.contiguous_format)
        assert own.data_encoder is not None and not own.config.takes_time
        return cls(as_published(own.data_encoder.network), as_published(own.noise_encoder.network),
                   own.operator, as_published(own.decoder.network), own.decoder.shape,
                   own.spec.sigma_data)

    @classmethod
    def for_points(cls, dim: int, latent: int) -> "PublishedStudent":
        """The published networks for points in `dim` dimensions."""
        return cls(TimedMLP([dim, *[latent] * 5], 0.0, ends_active=True),
                   TimedMLP([dim, *[latent] * 5], 1.0, ends_active=True),
                   nn.Linear(latent, latent),
                   TimedMLP([latent, *[latent] * 4, dim], 0.0, ends_active=False), (latent,), 1.0)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z.reshape(len(z), *self.latent_shape)) * self.scale

    def forward(self, noise: Tensor) -> Tensor:
        return self.decode(self.operator(self.noise_encoder(noise).flatten(1)))


class PublishedStep:
    """Trains a `PublishedStudent`: `step(noise, samples)` is one iteration."""

    def __init__(
        self,
        student: PublishedStudent,
        discriminator: nn.Module | None = None,
        distance: nn.Module | None = None,
        targets: Tensor | None = None,
        latent_noise: float = 0.4,
        lr: float = 3e-4,
        decay: float = 0.9999,
    ) -> None:
        """Make ready to train.

        Args:
            student: whose weights are trained.
            discriminator: the adversary's network, (B, *shape) → logits; None for no adversary.
            distance: of reconstructions and predictions; None for the mean squared error.
            targets: complex (d,), of the eigenvalues of a dense operator; None for no penalty.
            latent_noise: standard deviation of what is added to latents.
            lr: of Adam, for student and discriminator.
            decay: of the averaged weights.
        """
        self.student, self.discriminator = student.train(), discriminator
        self.distance, self.targets = distance or mean_square, targets
        self.latent_noise, self.decay = latent_noise, decay
        self.average = copy.deepcopy(student).eval().requires_grad_(False)
        self.adam = torch.optim.Adam(student.parameters(), lr=lr)
        if discriminator is not None:
            self.adam_d = torch.optim.Adam(discriminator.parameters(), lr=lr)

    def step(self, noise: Tensor, samples: Tensor) -> Tensor:
        self.adam.zero_grad()
        terms, predicted = self.terms(noise, samples)
        if self.discriminator is not None:
            self.adam_d.zero_grad()
            self.discriminator_loss(samples, predicted.detach()).backward()
            self.adam_d.step()
            # Through the discriminator's weights after its step, and into their gradients too.
            terms["adversarial"] = self.generator_loss(predicted)
        loss = self.total(terms)
        loss.backward()
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                torch.nan_to_num(parameter.grad, nan=0, posinf=1e5, neginf=-1e5,
                                 out=parameter.grad)
        self.adam.step()
        with torch.no_grad():
            for average, now in zip(self.average.parameters(), self.student.parameters(),
                                    strict=True):
                average.copy_(now.lerp(average, self.decay))
        return loss.detach()

    def terms(
        self, noise: Tensor, samples: Tensor, drawn: Drawn | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The terms of the objective but for the adversary's, and the prediction."""
        student = self.student
        z_0 = student.data_encoder(samples / student.scale).flatten(1)
        z_t = student.noise_encoder(noise).flatten(1)
        drawn = drawn or Drawn(torch.randn_like(z_0), torch.randn_like(z_t))
        pushed = student.operator(z_t + self.latent_noise * drawn.noise)
        predicted = student.decode(pushed)
        reconstructed = student.decode(z_0 + self.latent_noise * drawn.data)
        terms = {"reconstruction": self.distance(samples, reconstructed),
                 "latent": mean_square(z_0, pushed),
                 "prediction": self.distance(samples, predicted)}
        if self.targets is not None:
            operator = student.operator
            matrix = operator.weight if isinstance(operator, nn.Linear) else operator.matrix
            terms["operator"] = spectral_penalty(matrix, self.targets)
        return terms, predicted

    @staticmethod
    def total(terms: dict[str, Tensor]) -> Tensor:
        """Eq. 9, with the published weights."""
        loss = torch.stack([term for name, term in terms.items() if name != "adversarial"]).sum()
        return loss + 0.01 * terms["adversarial"] if "adversarial" in terms else loss

    def generator_loss(self, fake: Tensor) -> Tensor:
        assert self.discriminator is not None
        logits = self.discriminator(fake)
        return F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        assert self.discriminator is not None
        on_real, on_fake = self.discriminator(real), self.discriminator(fake)
        return (F.binary_cross_entropy_with_logits(on_real, torch.ones_like(on_real))
                + F.binary_cross_entropy_with_logits(on_fake, torch.zeros_like(on_fake)))
