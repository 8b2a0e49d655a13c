"""LPIPS as a training loss: both reconstructions of a batch, forward and backward.

    python -m benchmarks.losses [--batch 16] [--pixels 32] [--rounds 5] [--device auto]

Against the package `lpips` used as the published code uses its own: each pair of a sample and a
reconstruction goes through the network by itself, in float32 and the default memory format.
VGG16 with average pooling, frozen, at the images' own size, with the same weights in both.
"""

import argparse

import torch
from torch import Tensor, nn

from benchmarks.timing import ratio, rounds
from kdm_core.compute import Precision, autocast, resolve_device
from kdm_core.losses.distances import LPIPSConfig, build_distance
from kdm_core.losses.trunks import read_weights
from kdm_core.vision import import_torchvision


def package_lpips() -> nn.Module:
    """The package's network with the real weights, its pooling replaced as in the published code.

    (Which takes LPIPS from the package `piq`: the same passes over the same network.)
    """
    import_torchvision()  # which lpips does, too, but not beside every build of torch
    import lpips

    model: nn.Module = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    remaining = iter(read_weights("vgg")[0])
    for block in model.net.children():
        for name, layer in block.named_children():
            if isinstance(layer, nn.Conv2d):
                weights = next(remaining)
                layer.load_state_dict({"weight": weights["kernel"], "bias": weights["bias"]})
            elif isinstance(layer, nn.MaxPool2d):
                setattr(block, name, nn.AvgPool2d(2, 2))
    return model.requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name, default in (("batch", 16), ("pixels", 32), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    shape = (arguments.batch, 3, arguments.pixels, arguments.pixels)
    generator = torch.Generator().manual_seed(0)
    target, *made = (torch.rand(shape, generator=generator).mul(2).sub(1).to(device)
                     for _ in range(3))
    predictions = [image.requires_grad_() for image in made]
    theirs = package_lpips().to(device)
    config = LPIPSConfig(kind="lpips", resolution=0, pooling="average")
    distance = build_distance(config, device)

    def backward(terms: list[Tensor]) -> list[Tensor]:
        gradients = torch.autograd.grad(torch.stack(terms).sum(), predictions)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return [*(term.detach() for term in terms), *gradients]

    def published() -> list[Tensor]:
        return backward([theirs(target, image).mean() for image in predictions])

    def ours(precision: Precision) -> list[Tensor]:
        with autocast(precision, device):
            terms = distance(target, predictions)
        return backward(terms)

    for precision in ("fp32", "bf16"):
        for name, a, b in zip(("reconstruction", "prediction"), published()[2:],
                              ours(precision)[2:], strict=True):
            print(f"{precision}: gradient of the {name} term differs by "
                  f"{float((a - b).norm() / a.norm()):.1e}")
    seconds = rounds({"published": published, "fp32": lambda: ours("fp32"),
                      "bf16": lambda: ours("bf16"), "auto": lambda: ours("auto")},
                     arguments.rounds)
    print(f"batch {arguments.batch}, {arguments.pixels} pixels, {device}: "
          f"published {min(seconds['published']):.3f} s")
    for precision in ("fp32", "bf16", "auto"):
        print(f"ours in {precision}: {min(seconds[precision]):.3f} s, "
              f"{ratio(seconds['published'], seconds[precision])} faster")


if __name__ == "__main__":
    main()
