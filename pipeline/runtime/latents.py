"""What models learn: the data, or their latents, which an autoencoder makes pictures again."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdm_core.datasets import NoDataConfig
from kdm_core.decoders import Autoencoder, decode_all, load_autoencoder
from kdm_core.errors import MismatchError
from kdm_core.samples import Kind, SampleSpec
from kdm_core.values import from_uint8, to_uint8
from pipeline.runtime import paths

if TYPE_CHECKING:
    from pipeline.params.run import Params


def learned_data(params: "Params") -> Path:
    """The folder of the data set that models learn.

    Without data, the samples of the pairs stand in for them, which are latents already.
    """
    encoded = params.autoencoder is not None and not isinstance(params.data, NoDataConfig)
    return paths.LATENTS if encoded else paths.DATASET


def shown_kind(params: "Params", data: SampleSpec) -> Kind:
    """What reports show, of data of this kind: of latents images, where there is a decoder."""
    return "image" if data.kind == "latent" and params.autoencoder is not None else data.kind


class Pictures:
    """Makes images at rest, rounded to their 256 levels, of a run's samples.

    Attributes:
        autoencoder: None where samples are images themselves, or nothing decodes them.
    """

    def __init__(self, params: "Params", spec: SampleSpec, device: torch.device) -> None:
        """
        Args:
            spec: of the samples.

        Raises:
            MismatchError: they are latents of another autoencoder.
        """
        self.autoencoder: Autoencoder | None = None
        self.spec, self.device = spec, device
        if spec.kind != "latent" or params.autoencoder is None:
            return
        self.autoencoder, mark = load_autoencoder(paths.AUTOENCODER)
        if self.autoencoder.shape != spec.shape or spec.decoder not in (None, mark):
            raise MismatchError(f"{paths.PAIRS} has latents of shape {spec.shape}, of the decoder "
                                f"{str(spec.decoder)[:12]}, and {paths.AUTOENCODER} is "
                                f"{mark[:12]} for latents of shape {self.autoencoder.shape}: take "
                                "the one that the pairs are of (autoencoder.source: folder)")

    @property
    def shown(self) -> SampleSpec:
        """What samples are when they are looked at; latents that nothing decodes stay latents."""
        if self.autoencoder is None:
            return self.spec
        return SampleSpec(kind="image", shape=self.autoencoder.picture,
                          label_names=self.spec.label_names)

    def __call__(self, samples: Tensor) -> Tensor:
        """Samples (n, *shape) on the CPU as what `shown` says, (n, *shown.shape)."""
        if self.autoencoder is None:
            return samples
        return from_uint8(to_uint8(decode_all(self.autoencoder, samples, self.device)))
