"""What an autoencoder is: images to the latents that models learn, and back."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from kdm_core.config import Config
from kdm_core.errors import KDMError
from kdm_core.samples import SampleSpec


class Autoencoder(nn.Module, ABC):
    """Images (B, *picture) in [-1, 1] and latents (B, *shape), each channel of about one variance.

    Latents are (raw - shift) · scale, channel by channel, of what the network itself calls latents:
    a scaling and shift factor, or statistics of every channel.

    Attributes:
        config: rebuilds it, without its weights.
        picture: shape (C, H, W) of an image.
        shape: shape (C, H, W) of its latents.
        can_encode: whether there is an encoder.
        shift, scale: (C,) each, float32.
    """

    config: Config
    shift: Tensor
    scale: Tensor

    def __init__(self, picture: list[int], shape: list[int], can_encode: bool = True) -> None:
        super().__init__()
        self.picture, self.shape, self.can_encode = list(picture), list(shape), can_encode
        self.register_buffer("shift", torch.zeros(shape[0]))
        self.register_buffer("scale", torch.ones(shape[0]))

    def rescale(self, shift: Tensor, scale: Tensor) -> None:
        """Make latents (raw - shift) · scale from now on, (C,) each.

        Raises:
            KDMError: they are for another number of channels, or a scale is none.
        """
        channels = self.shape[0]
        for name, values in (("shift", shift), ("scale", scale)):
            if values.shape != (channels,) or not values.isfinite().all():
                raise KDMError(f"{name}: {values.tolist()}, but latents have {channels} channels; "
                               "give a finite number for each")
        if (scale <= 0).any():
            raise KDMError(f"scale: {scale.tolist()} cannot be undone; give positive numbers")
        self.shift.copy_(shift)
        self.scale.copy_(scale)

    @abstractmethod
    def raw_encode(self, images: Tensor) -> Tensor:
        """The network's own latents (B, *shape), the mean where it gives a distribution."""

    @abstractmethod
    def raw_decode(self, latents: Tensor) -> Tensor:
        """Images (B, *picture) of the network's own latents, as the network gives them."""

    def encode(self, images: Tensor) -> Tensor:
        """Latents (B, *shape) float32 of images (B, *picture) in [-1, 1].

        Raises:
            KDMError: images have another shape, or there is no encoder.
        """
        if not self.can_encode:
            raise KDMError("this autoencoder came without its encoder: nothing can be encoded; "
                           "take one that has it, or latents that are finished")
        self._require(images, self.picture, "images")
        raw = self.raw_encode(images).to(torch.float32)
        return (raw - self.shift[:, None, None]) * self.scale[:, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, *picture) float32 in [-1, 1] of latents (B, *shape).

        Values that the network gives and that are not finite are NaN, infinite ones too.

        Raises:
            KDMError: latents have another shape.
        """
        self._require(latents, self.shape, "latents")
        raw = latents.to(torch.float32) / self.scale[:, None, None] + self.shift[:, None, None]
        images = self.raw_decode(raw).to(torch.float32)
        return images.clamp(-1, 1).masked_fill(~images.isfinite(), torch.nan)

    def samples(self, mark: str, sigma_data: float, label_names: list[str]) -> SampleSpec:
        """What its latents are; `mark` is its fingerprint."""
        return SampleSpec(kind="latent", shape=self.shape, sigma_data=sigma_data,
                          label_names=label_names, decoder=mark, picture=self.picture)

    def _require(self, values: Tensor, shape: list[int], what: str) -> None:
        if list(values.shape[1:]) != shape:
            raise KDMError(f"this autoencoder is for {what} of shape {shape}, found "
                           f"{list(values.shape[1:])}")
