"""Autoencoders: what turns images into latents, and latents into images."""

from kdm_core.decoders.base import Autoencoder
from kdm_core.decoders.coding import decode_all, encode_all
from kdm_core.decoders.conv import ConvAutoencoder, ConvAutoencoderConfig
from kdm_core.decoders.diffusers import DiffusersAutoencoder, DiffusersAutoencoderConfig
from kdm_core.decoders.importing import (
    AutoencoderSource,
    DiffusersAutoencoderSource,
    FolderAutoencoderSource,
    ForeignAutoencoderSource,
    TrainedAutoencoder,
    import_autoencoder,
    latent_shape,
)
from kdm_core.decoders.statistics import (
    STABILITY_VAE,
    ChannelStatistics,
    measure_statistics,
    normalise,
    set_statistics,
)
from kdm_core.decoders.storage import (
    AutoencoderConfig,
    build_autoencoder,
    load_autoencoder,
    save_autoencoder,
)
from kdm_core.decoders.training import AutoencoderTask

__all__ = ["STABILITY_VAE", "Autoencoder", "AutoencoderConfig", "AutoencoderSource",
           "AutoencoderTask", "ChannelStatistics", "ConvAutoencoder", "ConvAutoencoderConfig",
           "DiffusersAutoencoder", "DiffusersAutoencoderConfig", "DiffusersAutoencoderSource",
           "FolderAutoencoderSource", "ForeignAutoencoderSource", "TrainedAutoencoder",
           "build_autoencoder", "decode_all", "encode_all", "import_autoencoder", "latent_shape",
           "load_autoencoder", "measure_statistics", "normalise", "save_autoencoder",
           "set_statistics"]
