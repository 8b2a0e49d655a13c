"""A small image classifier of the user's data set, whose features stand in for Inception's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdm_core.compute import autocast, step_generator
from kdm_core.config import Config
from kdm_core.errors import KDMError
from kdm_core.metrics.features import named_after
from kdm_core.samples import SampleSpec
from kdm_core.serialization import load_model, save_model
from kdm_core.training.batches import BatchOrder
from kdm_core.training.compilation import compiled
from kdm_core.training.config import TrainingConfig
from kdm_core.training.distributed import check_batch
from kdm_core.training.ema import Averages
from kdm_core.training.optimizer import ScheduledOptimizer
from kdm_core.training.task import Task
from kdm_core.values import from_uint8

STAGE = 6  # layers between two halvings: two convolutions, each with its norm and ReLU


class ClassifierConfig(Config):
    """Size of the classifier.

    Attributes:
        channels: of the first convolutions; twice as many wherever the resolution is halved.
        features: units of the last layer before the logits, in which image sets are compared.
    """

    channels: int = Field(32, ge=8)
    features: int = Field(64, ge=2)


class Classifier(nn.Module):
    """Convolutions with batch norm, halving the resolution until at most 4×4 pixels are left."""

    def __init__(self, config: ClassifierConfig, spec: SampleSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        layers: list[nn.Module] = []
        channels, width, resolution = spec.shape[0], config.channels, max(spec.shape[1:])
        while True:
            for stride in (1, 2 if resolution > 4 else 1):
                layers += [nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
                           nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            if resolution <= 4:
                break
            resolution, width = (resolution + 1) // 2, 2 * width
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.embed = nn.Linear(4 * channels, config.features)
        self.head = nn.Linear(config.features, len(spec.label_names))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [-1, 1] → features (B, features) and logits (B, classes)."""
        features = F.relu(self.embed(self.body(images)))
        return features, self.head(features)

    def activations(self, images: Tensor) -> list[Tensor]:
        """After each pair of convolutions (B, C, H, W), then the features (B, features)."""
        found: list[Tensor] = []
        x = images
        for number, layer in enumerate(self.body, start=1):
            x = layer(x)
            if number % STAGE == 0:
                found.append(x)
        return [*found, F.relu(self.embed(x))]


class ClassifierTask(Task):
    """Cross-entropy with label smoothing on images shifted by up to one pixel in eight."""

    def __init__(self, model: Classifier, config: TrainingConfig, images: Tensor, labels: Tensor,
                 seed: int) -> None:
        self.config, self.model, self.seed = config, model.train(), seed
        self.images, self.labels = images, labels
        self.order = BatchOrder(len(images), config.batch, seed, images.device)
        check_batch(self.order.batch, config.accumulate, most=self.order.count)
        self.ema = Averages(model, config)
        self.optimizer = ScheduledOptimizer(model.parameters(), config)
        self.modules = {"model": model, "ema": self.ema}
        self.optimizers = {"optimizer": self.optimizer}
        compiled(model, config, images.device)

    def step(self, step: int) -> dict[str, Tensor]:
        device = self.images.device
        rows = self.order(step)
        images = random_shift(self.images[rows], step_generator(device, self.seed, step))
        accumulate = self.config.accumulate
        loss = torch.zeros((), device=device)
        for part, labels in zip(images.chunk(accumulate), self.labels[rows].chunk(accumulate),
                                strict=True):
            with autocast(self.config.precision, device):
                _, logits = self.model(part)
                share = F.cross_entropy(logits, labels, label_smoothing=0.1) / accumulate
            self.optimizer.backward(share)
            loss += share.detach()
        curves = self.optimizer.update(step)
        self.ema.update(self.model, step)
        return {"loss": loss, **curves}


def random_shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move a batch by one random offset of up to an eighth of its size, edges repeated."""
    reach = max(1, images.shape[-1] // 8)
    dy, dx = torch.randint(-reach, reach + 1, (2,), generator=generator,
                           device=images.device).tolist()
    padded = F.pad(images, [reach] * 4, mode="replicate")
    height, width = images.shape[-2:]
    return padded[..., reach + dy : reach + dy + height, reach + dx : reach + dx + width]


class ClassifierExtractor:
    """The classifier's features (B, features) and class probabilities, in float32."""

    name = "classifier"
    text = "A small classifier trained on the data set's train split: its last hidden layer."
    batch = 1024

    def __init__(self, model: Classifier, fingerprint: str) -> None:
        """`fingerprint`: what `save_classifier` or `load_classifier` returned with the model."""
        self.model, self.fingerprint = model.eval(), fingerprint
        self.dim = model.config.features
        self.metric_names: Mapping[str, str] = named_after(self.name)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if tuple(images.shape[1:]) != self.model.spec.sample_shape:
            raise KDMError("the classifier is for images of shape "
                           f"{self.model.spec.sample_shape}, found {tuple(images.shape[1:])}: "
                           "train it again, on such images")
        device = self.model.embed.weight.device
        features, logits = self.model(from_uint8(images.to(device)))
        return features, logits.softmax(dim=1)


def save_classifier(folder: Path, model: Classifier) -> str:
    """Write a classifier as safetensors and JSON; returns its fingerprint."""
    return save_model(folder, model, {"classifier": model.config.model_dump(),
                                      "samples": model.spec.model_dump()})


def load_classifier(folder: Path) -> tuple[Classifier, str]:
    """Read what `save_classifier` wrote; returns the model in eval mode and its fingerprint."""

    def build(config: dict[str, Any]) -> Classifier:
        return Classifier(ClassifierConfig.model_validate(config["classifier"]),
                          SampleSpec.model_validate(config["samples"]))

    return load_model(folder, build)
