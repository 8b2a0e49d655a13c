"""Inception-v3 of FID, resized and run by clean-fid's own code (Parmar, Zhang & Zhu 2022)."""

import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from kdm_core.config import Config
from kdm_core.metrics.extractors.base import as_rgb, reading
from kdm_core.metrics.features import named_after
from kdm_core.serialization import fingerprint
from kdm_core.vision import import_torchvision
from kdm_core.weights.store import WeightsSource, find

Mode = Literal["clean", "legacy_pytorch", "legacy_tensorflow"]
# The name under which clean-fid looks for the file.
TORCHSCRIPT = "inception-2015-12-05.pt"


class InceptionConfig(Config):
    """Features of the Inception network of Heusel et al. 2017.

    Attributes:
        mode: how images come to 299×299 pixels: `clean` (PIL's bicubic filter, not rounded),
            `legacy_pytorch` (bilinear without antialiasing, as pytorch-fid, with its weights) or
            `legacy_tensorflow` (as the first FID; the network does it itself).
    """

    kind: Literal["inception"]
    mode: Mode = "clean"

    @property
    def name(self) -> str:
        return f"inception_{self.mode}"


class Inception:
    """Features (B, 2048) and, where the network has its last layer, probabilities (B, 1008).

    Only with the genuine weights do the metrics have their proper names: FID, KID and Inception
    score. The score's probabilities are softmax(W f) without the bias, as its first code had it.
    """

    dim = 2048
    batch = 64

    def __init__(
        self, config: InceptionConfig, sources: Mapping[str, WeightsSource], device: torch.device
    ) -> None:
        """Raises: as `find`; DataError: a file of the right checksum is no such network."""
        ported = config.mode == "legacy_pytorch"
        weights = find("inception_pytorch" if ported else "inception", sources)
        import_torchvision()
        self.mode, self.device = config.mode, device
        self.name = config.name
        self.resize = resizer(config.mode)
        with reading(weights.path, "an Inception network for FID"), torch.inference_mode():
            self.network = (pytorch_network(weights.path) if ported else
                            torchscript_network(weights.path, config.mode)).to(device).eval()
            self.output = None if ported else output_layer(self.network)
            self(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
        self.fingerprint = fingerprint({**config.model_dump(), "weights": weights.sha256})
        self.metric_names: Mapping[str, str] = (
            fid_names(config.mode) if weights.genuine else named_after(self.name))
        owner = "The" if weights.genuine else "Not the genuine"
        self.text = (f"{owner} Inception network of FID, run by clean-fid in mode {config.mode}: "
                     "2048 features of its last pooling.")

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        pixels = self.resized(as_rgb(images)).to(self.device)
        if self.mode == "legacy_pytorch":
            features: Tensor = self.network(pixels / 255)[0].flatten(1)
        else:
            features = self.network(pixels)
        if self.output is None:
            return features, None
        return features, (features @ self.output.T).softmax(dim=1)

    def resized(self, images: Tensor) -> Tensor:
        """uint8 images (B, 3, H, W) → 0 … 255 floats of the size that the network wants."""
        if self.mode == "legacy_tensorflow":
            return images.float()
        pictures = images.cpu().permute(0, 2, 3, 1).numpy()
        return torch.from_numpy(np.stack([self.resize(picture) for picture in pictures])).permute(
            0, 3, 1, 2)


def fid_names(mode: Mode) -> dict[str, str]:
    """Names of metrics in the genuine network's features."""
    proper = {"fd": "fid", "fd_infinity": "fid_infinity", "kd": "kid", "is": "is"}
    return named_after(f"inception_{mode}") | {
        metric: f"{name}_{mode}" for metric, name in proper.items()}


def resizer(mode: Mode) -> Callable[[Any], Any]:
    """clean-fid's function for one picture (H, W, 3)."""
    from cleanfid.resize import build_resizer

    with warnings.catch_warnings():  # it silences those of the whole process
        return build_resizer(mode)  # type: ignore[no-any-return]


def torchscript_network(path: Path, mode: Mode) -> torch.nn.Module:
    """clean-fid's wrapper of the TorchScript file, whose checksum was compared."""
    from cleanfid.inception_torchscript import InceptionV3W

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit
        (Path(folder) / TORCHSCRIPT).symlink_to(path.resolve())
        return InceptionV3W(folder, download=False,  # type: ignore[no-any-return]
                            resize_inside=mode == "legacy_tensorflow")


def output_layer(network: Any) -> Tensor | None:
    """The weights (k, 2048) of the layer after the features; None if the file has none."""
    weight = getattr(getattr(network.base, "output", None), "weight", None)
    if isinstance(weight, Tensor) and weight.ndim == 2 and weight.shape[1] == Inception.dim:
        return weight
    return None


def pytorch_network(path: Path) -> torch.nn.Module:
    """clean-fid's copy of pytorch-fid's network, with weights from a file instead of its URL."""
    from cleanfid import inception_pytorch

    def load(url: str, progress: bool) -> Any:
        return torch.load(path, map_location="cpu", weights_only=True)

    with patch.object(inception_pytorch, "load_state_dict_from_url", load), \
            warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of torchvision, on clean-fid's arguments
        return inception_pytorch.InceptionV3(  # type: ignore[no-any-return]
            output_blocks=[3], resize_input=False)
