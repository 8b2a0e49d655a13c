"""LPIPS (Zhang et al. 2018) on images of any size, with the real ImageNet weights."""

import torch
from torch import Tensor, nn

from kdm_core.losses.trunks import Net, Pooling, Trunk, unit_length


class LPIPS(nn.Module):
    """The perceptual distance between images (B, C, H, W) in [-1, 1], C 1 or 3.

    With max pooling it is that of the `lpips` package (v0.1); with average pooling of VGG16, that
    of KDM's published code.

    LPIPS weights the squared differences of unit-length activations by w_c ≥ 0 and averages them
    over pixels. Here the root of those weights is a part of the features, which a target then
    pays for once: LPIPS is the squared Euclidean distance of features.
    """

    def __init__(
        self, resolution: int = 0, net: Net = "vgg", pooling: Pooling = "max"
    ) -> None:
        """`resolution`: images with a shorter side are enlarged (bilinear) until it has this.

        Raises:
            DataError: the package with the weights is not installed.
            MismatchError: it is, but is not the one that was tested.
        """
        super().__init__()
        self.trunk = Trunk(net, pooling, resolution)
        for index, weights in enumerate(self.trunk.calibration):
            roots = weights.sqrt().reshape(1, -1, 1, 1)
            self.register_buffer(f"roots_{index}", roots, persistent=False)

    def features(self, images: Tensor) -> list[Tensor]:
        """What distances are measured in: of each of five blocks (B, C_l, H_l, W_l).

        Raises:
            KDMError: the images are too small, or have another number of channels.
        """
        scaled = []
        for index, activations in enumerate(self.trunk(images)):
            pixels = activations.shape[2] * activations.shape[3]
            scale = self.get_buffer(f"roots_{index}") / pixels**0.5
            scaled.append(unit_length(activations) * scale.to(activations.dtype))
        return scaled

    def compare(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """The distance (..., B) between images with these features; leading axes broadcast."""
        wide = torch.promote_types(a[0].dtype, torch.float32)
        terms = [(x - y).square().sum(dim=(-3, -2, -1), dtype=wide)
                 for x, y in zip(a, b, strict=True)]
        return torch.stack(terms).sum(dim=0)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The distance (B,) between images."""
        return self.compare(self.features(a), self.features(b))

    def to_target(self, target: Tensor, predictions: list[Tensor]) -> Tensor:
        """The distances (P, B) of P predictions (B, C, H, W) from a target without gradient.

        The target's features are computed once, those of all predictions in one call.
        """
        with torch.no_grad():
            wanted = self.features(target)
        found = self.features(torch.cat(predictions))
        stacked = [layer.reshape(len(predictions), -1, *layer.shape[1:]) for layer in found]
        return self.compare(stacked, wanted)
