"""VGG16's weights where they are installed, and others of the same shape where they are not."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal
from unittest.mock import patch

import torch
from torch import Tensor

from kdm_core.compute import seeded
from kdm_core.errors import DataError
from kdm_core.losses import trunks

CHANNELS = (64, 64, 128, 128, *[256] * 3, *[512] * 6)
BLOCKS = (64, 128, 256, 512, 512)

Weights = tuple[list[dict[str, Tensor]], list[Tensor]]
Origin = Literal["ImageNet's", "random"]


def random_weights() -> Weights:
    """In the form of `kdm_core.losses.trunks.read_weights`; activations keep their size."""
    with seeded(0):
        convolutions = [{"kernel": torch.randn(made, given, 3, 3) * (2 / (9 * given)) ** 0.5,
                         "bias": torch.zeros(made)}
                        for given, made in zip((3, *CHANNELS), CHANNELS, strict=False)]
        return convolutions, [torch.rand(channels) for channels in BLOCKS]


@cache
def known_weights() -> tuple[Weights, Origin]:
    """Read once: many networks are built of them."""
    try:
        return trunks.read_weights("vgg"), "ImageNet's"
    except DataError:
        return random_weights(), "random"


@contextmanager
def vgg_weights() -> Iterator[Origin]:
    """A context in which VGG16 and its LPIPS can be built, for the sake of their time.

    Yields:
        Whether the weights are the genuine ones.
    """
    weights, origin = known_weights()
    with patch.object(trunks, "read_weights", lambda net: weights):
        yield origin
