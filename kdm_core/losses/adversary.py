"""The adversarial term (eq. 8): a discriminator and the losses of both sides."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from kdm_core.config import Config
from kdm_core.losses.discriminator import (
    Critic,
    Discriminator,
    FeatureDiscriminator,
    check_samples,
)
from kdm_core.losses.features import NONE, FeaturesConfig, Frozen, VGG16Features
from kdm_core.samples import SampleSpec


class AdversaryConfig(Config):
    """The discriminator and its loss; the defaults are those of the paper.

    Attributes:
        recipe: published constants, from which what is given beside it departs: `kdm` (the
            paper), `d2o` (arXiv:2405.20750) or `r3gan` (arXiv:2501.05441).
        real: `pairs` (the teacher's samples, the paper) or `data` (the training images, of the
            classes of the batch; with them a student can pass its teacher).
        network: the `paper`'s convolutions on pixels, or heads on frozen `features`.
        features: the networks whose activations those heads see.
        channels: of the first convolution, or of each head.
        normalise: batch normalisation in the paper's convolutions, as published; with penalties of
            the gradient, leave it out.
        loss: `bce` (logistic, not saturating), `hinge` (Lim & Ye 2017), or `relativistic`:
            each prediction against a real sample (RpGAN, Jolicoeur-Martineau 2019; R3GAN, Huang et
            al. 2024).
        r1: weight gamma of gamma/2 ‖∇D‖² on real samples (Mescheder et al. 2018).
        r2: the same on the student's; R3GAN uses both.
        r1_every: the penalties are taken on every n-th sample of a batch. Their mean stays the
            same, and so does the cost of a step, unlike with a penalty every n-th step.
        augment: differentiable augmentations of all that the discriminator sees (Zhao et al. 2020,
            arXiv:2006.10738), where real samples are few.
    """

    recipe: Literal["kdm", "d2o", "r3gan"] = "kdm"
    real: Literal["pairs", "data"] = "pairs"
    network: Literal["paper", "features"] = "paper"
    features: list[FeaturesConfig] = [VGG16Features(kind="vgg16")]
    channels: int = Field(64, ge=1)
    normalise: bool = True
    loss: Literal["bce", "hinge", "relativistic"] = "bce"
    r1: float = Field(0.0, ge=0)
    r2: float = Field(0.0, ge=0)
    r1_every: int = Field(1, ge=1)
    augment: list[Literal["colour", "translation", "cutout"]] = []


class Adversary(nn.Module):
    """A discriminator, trained to tell predictions ("fake") from the teacher's samples ("real").

    Both losses take the same prediction, so that a step needs one evaluation of the student.
    Called as a module it is its discriminator's loss.
    """

    def __init__(self, config: AdversaryConfig, network: Critic) -> None:
        super().__init__()
        self.config, self.network = config, network

    def generator_loss(self, fake: Tensor, real: Tensor) -> Tensor:
        """What the student minimises on predictions (B, C, H, W) of the pairs' samples `real`.

        The gradient flows into `fake` only.
        """
        frozen = {name: value.detach() for name, value in self.network.named_parameters()}
        judged: Tensor = functional_call(self.network, frozen, (fake,)).float()
        if self.config.loss == "hinge":
            return -judged.mean()
        if self.config.loss == "relativistic":
            with torch.no_grad():
                reference = self.network(real).float()
            judged = judged - reference
        # CE(1, D(x̂)) of algorithm 1, or of the difference.
        return F.softplus(-judged).mean()

    def discriminator_loss(self, fake: Tensor, real: Tensor) -> Tensor:
        """What the discriminator minimises, penalties included.

        The gradient flows into neither `fake` nor `real`.
        """
        with torch.no_grad():
            embedded_real = self.network.embed(real.detach())
            embedded_fake = self.network.embed(fake.detach())
        on_real = self.network.judge(embedded_real).float()
        on_fake = self.network.judge(embedded_fake).float()
        loss = discriminator_loss(self.config.loss, on_real, on_fake)
        if self.config.r1:
            loss = loss + self.config.r1 / 2 * self.gradient_penalty(embedded_real)
        if self.config.r2:
            loss = loss + self.config.r2 / 2 * self.gradient_penalty(embedded_fake)
        return loss

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        return self.discriminator_loss(fake, real)

    def gradient_penalty(self, embedded: list[Tensor]) -> Tensor:
        """E‖∇D‖², by what the trained part of the discriminator sees, each head by its own."""
        device = embedded[0].device.type
        # Squares of small gradients, differentiated twice: float32 whatever the rest is in.
        with torch.autocast(device, enabled=False), torch.enable_grad():
            inputs = [layer[:: self.config.r1_every].detach().float().requires_grad_()
                      for layer in embedded]
            judged = self.network.judge(inputs).sum()
            gradients = torch.autograd.grad(judged, inputs, create_graph=True)
            norms = [gradient.square().flatten(1).sum(dim=1) for gradient in gradients]
        return torch.stack(norms).sum(dim=0).mean()


def discriminator_loss(kind: str, real: Tensor, fake: Tensor) -> Tensor:
    """A loss of logits of teacher samples and of predictions of the same pairs."""
    if kind == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    if kind == "relativistic":
        return F.softplus(fake - real).mean()
    # CE(1, D(x)) + CE(0, D(x̂)) of algorithm 1.
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def check_adversary(config: AdversaryConfig, spec: SampleSpec) -> None:
    """Make sure that the adversary can be built for samples of this kind and shape.

    Raises:
        KDMError: it cannot; the message starts with the parameter's name.
    """
    check_samples(spec, features=config.network == "features")


def build_adversary(
    config: AdversaryConfig, spec: SampleSpec, device: torch.device, frozen: Frozen = NONE
) -> Adversary:
    """The adversary that a configuration describes, for samples (C, H, W) of `spec`.

    Raises:
        KDMError: as `check_adversary`; or DataError: VGG16's weights are not installed.
    """
    network: Critic
    if config.network == "features":
        network = FeatureDiscriminator(spec, config.channels)
    else:
        network = Discriminator(spec, config.channels, config.normalise)
    return Adversary(config, network).to(device)
