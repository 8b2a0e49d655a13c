"""What one sample is."""

from typing import Any, Literal, TypeVar

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from kdm_core.config import Config

L = TypeVar("L")
Kind = Literal["image", "latent", "points"]
LATER = {"decoder", "picture"}
"""Fields that samples of older descriptions lack."""


class SampleSpec(Config):
    """What one sample is.

    Attributes:
        kind: images are float in [-1, 1], (C, H, W); latents of an autoencoder are unbounded,
            (C, H, W), each channel of about the same variance; points are unbounded vectors, (D,).
        shape: of one sample, without the batch; empty where nobody knows it yet.
        label_names: the classes a teacher or student is conditioned on; empty if on none.
        sigma_data: standard deviation of the samples' values (EDM's constant of that name).
        decoder: fingerprint of the autoencoder whose latents these are; None where nobody knows
            it, and for samples that are none.
        picture: shape (C, H, W) of the images that it decodes them to; None with `decoder`.
    """

    kind: Kind
    shape: list[int]
    label_names: list[str] = []
    sigma_data: float = Field(0.5, gt=0)
    decoder: str | None = None
    picture: list[int] | None = None

    @model_validator(mode="after")
    def _decoded(self) -> "SampleSpec":
        if self.kind != "latent" and (self.decoder or self.picture):
            raise ValueError(f"decoder: only latents have one, and these are {self.kind}")
        if (self.decoder is None) != (self.picture is None):
            raise ValueError("picture: decoder and picture belong together, give both or neither")
        if self.kind == "latent" and len(self.shape) not in (0, 3):
            raise ValueError(f"shape: latents are (C, H, W), found {self.shape}")
        return self

    @model_serializer(mode="wrap")
    def _without_later(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Samples that need none of the later fields keep their fingerprint."""
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items()
                if key not in LATER or value is not None}

    @property
    def name(self) -> str:
        """What samples are, in the plural."""
        return {"image": "images", "latent": "latents", "points": "points"}[self.kind]

    @property
    def bounded(self) -> bool:
        """Whether values lie in [-1, 1] and are 256 levels at rest."""
        return self.kind == "image"

    @property
    def spatial(self) -> bool:
        """Whether a sample is channels over height and width."""
        return self.kind != "points"

    @property
    def picture_shape(self) -> list[int] | None:
        """Of the image that a sample is or becomes; None if there is none."""
        return self.shape if self.kind == "image" else self.picture

    @property
    def as_picture(self) -> "SampleSpec":
        """What samples are once they are decoded; images and points are that themselves.

        Asked of what is pictured, or else the latents themselves are given.
        """
        if self.kind != "latent" or self.picture is None:
            return self
        return SampleSpec(kind="image", shape=self.picture, label_names=self.label_names)

    @property
    def pictured(self) -> bool:
        """Whether a sample is an image, or becomes one by its decoder."""
        return self.picture_shape is not None

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
