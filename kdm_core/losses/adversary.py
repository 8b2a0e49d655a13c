"""The adversarial term (eq. 8): a discriminator and the losses of both sides."""

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from kdm_core.config import Config
from kdm_core.errors import KDMError
from kdm_core.losses.augmentation import Augmentation, augment
from kdm_core.losses.discriminator import (
    Critic,
    Discriminator,
    FeatureDiscriminator,
    check_samples,
)
from kdm_core.losses.features import (
    NOWHERE,
    FeaturesConfig,
    Frozen,
    VGG16Features,
    build_features,
    check_features,
)
from kdm_core.samples import SampleSpec

RECIPES: dict[str, dict[str, Any]] = {
    "kdm": {},
    "d2o": {"network": "features", "r1": 1e-4, "r1_every": 16},
    "r3gan": {"loss": "relativistic", "r1": 0.05, "r2": 0.05, "normalise": False},
}


class AdversaryConfig(Config):
    """The discriminator and its loss; the defaults are those of the paper.

    Attributes:
        recipe: published constants, from which what is given beside it departs. `kdm` (the paper):
            its convolutions, bce. `d2o` (arXiv:2405.20750): features, bce, r1 of 1e-4 on every
            16th sample (theirs: on all pixels in every 16th step, on EfficientNet's features, too).
            `r3gan` (arXiv:2501.05441): relativistic, r1 and r2 of 0.05 on all samples, normalise
            false (theirs for CIFAR-10, before they fall to a tenth, with a larger network).
        real: `pairs` (the teacher's samples, the paper) or `data` (the training images, of the
            classes of the batch; with them a student can pass its teacher).
        network: the `paper`'s convolutions on pixels, or heads on frozen `features`.
        features: the networks whose activations those heads see.
        channels: of the first convolution, or of each head.
        normalise: batch normalisation between convolutions, as published by both; with penalties
            of the gradient, leave it out.
        loss: `bce` (logistic; the student's side is the one that does not saturate, softplus(−D),
            as in the paper, D2O and StyleGAN), `hinge` (Lim & Ye 2017), or `relativistic`: each
            prediction against a real sample (RpGAN, Jolicoeur-Martineau 2019; R3GAN, Huang et al.
            2024).
        r1: weight gamma of gamma/2 ‖∇D‖² on real samples (Mescheder et al. 2018). The gradient is
            the one by what the trained part sees: pixels, or mixed activations.
        r2: the same on the student's; R3GAN uses both.
        r1_every: the penalties are taken on every n-th sample of a batch. Their mean stays the
            same, and so does the cost of a step, unlike with a penalty every n-th step.
        augment: differentiable augmentations of all images that the discriminator sees (Zhao et
            al. 2020, arXiv:2006.10738), where real ones are few.
    """

    recipe: Literal["kdm", "d2o", "r3gan"] = "kdm"
    real: Literal["pairs", "data"] = "pairs"
    network: Literal["paper", "features"] = "paper"
    features: list[FeaturesConfig] = Field([VGG16Features(kind="vgg16")], min_length=1)
    channels: int = Field(64, ge=1)
    normalise: bool = True
    loss: Literal["bce", "hinge", "relativistic"] = "bce"
    r1: float = Field(0.0, ge=0)
    r2: float = Field(0.0, ge=0)
    r1_every: int = Field(1, ge=1)
    augment: list[Augmentation] = []

    @model_validator(mode="before")
    @classmethod
    def _published(cls, values: Any) -> Any:
        """Fill in what the recipe says and nobody else does."""
        if not isinstance(values, dict):
            return values
        return {**RECIPES.get(str(values.get("recipe")), {}), **values}


class Adversary(nn.Module):
    """A discriminator, trained to tell predictions ("fake") from real samples of the same classes.

    Both losses take the same prediction, so that a step needs one evaluation of the student.
    Called as a module it is its discriminator's loss.
    """

    def __init__(self, config: AdversaryConfig, network: Critic) -> None:
        super().__init__()
        self.config, self.network = config, network

    def generator_loss(self, fake: Tensor, real: Tensor, labels: Tensor | None = None) -> Tensor:
        """What the student minimises on predictions (B, *shape), beside `real` ones.

        The gradient flows into `fake` only.

        Args:
            labels: (B,) int64, of both, if samples have classes.
        """
        frozen = {name: value.detach() for name, value in self.network.named_parameters()}
        judged: Tensor = functional_call(
            self.network, frozen, (self.augmented(fake), labels)).float()
        if self.config.loss == "hinge":
            return -judged.mean()
        if self.config.loss == "relativistic":
            with torch.no_grad():
                reference = self.network(self.augmented(real), labels).float()
            judged = judged - reference
        # CE(1, D(x̂)) of algorithm 1, or of the difference.
        return F.softplus(-judged).mean()

    def discriminator_loss(
        self, fake: Tensor, real: Tensor, labels: Tensor | None = None
    ) -> Tensor:
        """What the discriminator minimises, penalties included; arguments as of `generator_loss`.

        The gradient flows into neither `fake` nor `real`.
        """
        with torch.no_grad():
            # Frozen networks see both at once: half the kernel launches.
            both = self.augmented(torch.cat([real.detach(), fake.detach()]))
            seen = self.network.embed(both, None if labels is None else labels.repeat(2))
            embedded_real, embedded_fake = map(list, zip(*(layer.chunk(2) for layer in seen),
                                                         strict=True))
        on_real = self.network.judge(embedded_real).float()
        on_fake = self.network.judge(embedded_fake).float()
        loss = discriminator_loss(self.config.loss, on_real, on_fake)
        if self.config.r1:
            loss = loss + self.config.r1 / 2 * self.gradient_penalty(embedded_real)
        if self.config.r2:
            loss = loss + self.config.r2 / 2 * self.gradient_penalty(embedded_fake)
        return loss

    def forward(self, fake: Tensor, real: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.discriminator_loss(fake, real, labels)

    def augmented(self, samples: Tensor) -> Tensor:
        return augment(samples, self.config.augment)

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
    """A loss of logits of real samples and of predictions."""
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
    if config.augment and spec.kind != "image":
        raise KDMError(f"losses.adversary.augment: only images are augmented, found {spec.kind}; "
                       "leave it out")
    if config.network == "paper":
        check_samples(spec)
        return
    for features in config.features:
        check_features(features, spec, "losses.adversary.features")


def build_adversary(
    config: AdversaryConfig, spec: SampleSpec, device: torch.device, frozen: Frozen = NOWHERE
) -> Adversary:
    """The adversary that a configuration describes, on the device, for samples of `spec`.

    Args:
        frozen: where features of the run's own networks are to be had from.

    Raises:
        KDMError: as `check_adversary`, or as `build_features`.
        DataError: weights of features are not installed.
    """
    check_adversary(config, spec)
    network: Critic
    if config.network == "features":
        networks = [build_features(each, spec, device, frozen) for each in config.features]
        shapes = [each.shapes(spec, device) for each in networks]
        network = FeatureDiscriminator(networks, shapes, config.channels, config.normalise)
    else:
        network = Discriminator(spec, config.channels, config.normalise)
    return Adversary(config, network).to(device)
