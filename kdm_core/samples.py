"""What one sample is."""

from typing import Literal, TypeVar

from pydantic import Field

from kdm_core.config import Config

L = TypeVar("L")


class SampleSpec(Config):
    """What one sample is.

    Attributes:
        kind: images are float in [-1, 1], (C, H, W); points are unbounded vectors, (D,).
        shape: of one sample, without the batch.
        label_names: the classes a teacher or student is conditioned on; empty if on none.
        sigma_data: standard deviation of the samples' values (EDM's constant of that name).
    """

    kind: Literal["image", "points"]
    shape: list[int]
    label_names: list[str] = []
    sigma_data: float = Field(0.5, gt=0)

    @property
    def num_classes(self) -> int:
        return len(self.label_names)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return tuple(self.shape)

    def told(self, labels: L) -> L | None:
        """What a model of such samples is told of their labels: without classes, nothing."""
        return labels if self.label_names else None


Source = Literal["teacher", "pairs"]
"""What a student is looked at beside: its teacher, or pairs of which nobody knows who made them."""
SOURCE_NAMES: dict[Source, str] = {"teacher": "teacher", "pairs": "stored pairs"}
