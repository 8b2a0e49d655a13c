"""Drifting: a loss on the distribution without a discriminator (arXiv:2602.04770)."""

from typing import Annotated, Literal

from pydantic import Field

from kdm_core.config import Config
from kdm_core.losses.features import FeaturesConfig, TeacherFeatures


class DriftingConfig(Config):
    """Attraction of predictions to real samples of their class, and repulsion from each other.

    Attributes:
        real: `pairs` (the teacher's samples) or `data` (the training samples, with the labels of
            the batch).
        features: frozen networks in whose activations forces act, besides the values themselves.
        temperatures: of the softmax over distances, in units of their mean.
    """

    real: Literal["pairs", "data"] = "pairs"
    features: list[FeaturesConfig] = [TeacherFeatures(kind="teacher")]
    temperatures: list[Annotated[float, Field(gt=0)]] = Field([0.02, 0.05, 0.2], min_length=1)
