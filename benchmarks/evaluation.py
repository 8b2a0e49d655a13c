"""Two sets of images to their distances in VGG16's features, against clean-fid's own path.

    python -m benchmarks.evaluation [--images 10000] [--npz FILE] [--resolution 32] [--rounds 1]
                                    [--bf16]

Both start from the same images and end with a Fréchet and a kernel distance in the same features:
the same VGG16 at the same input size in float32 on the same threads. clean-fid is driven as its
custom extractors are: folders of PNGs (written beforehand, not counted), its loader with a worker
a core, its resizer to the network's input size, its batches of 128, a network of plain layers in
the default memory format, `frechet_distance` and `kernel_distance` (100 subsets of 1,000). Ours
takes the images from memory, where an evaluation has them, and does the kernel distance over all
pairs. Then the same for a second student: here the features of the data are in the cache.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.timing import ratio, rounds
from kdm_core.losses.trunks import DEVIATION, LAYOUTS, MEAN, read_weights
from kdm_core.metrics.compare import Reference, reference_of
from kdm_core.metrics.estimate import resampling
from kdm_core.metrics.extractors import VGG16Config, build_extractor
from kdm_core.metrics.features import Extractor, extract
from kdm_core.metrics.frechet import fit_gaussian, frechet_distance
from kdm_core.metrics.kernel import discrepancy, polynomial
from kdm_core.vision import import_torchvision

CPU = torch.device("cpu")
SIDE = 32


class PlainVGG16(nn.Module):
    """Images with values in [0, 255] → the mean of the last block, as one would write it."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        weights = iter(read_weights("vgg")[0])
        for convolution in (step for block in LAYOUTS["vgg"].blocks for step in block):
            values = next(weights)
            layers += [nn.MaxPool2d(2)] if convolution.pooled else []
            layer = nn.Conv2d(*reversed(values["kernel"].shape[:2]), 3, padding=1)
            layer.load_state_dict({"weight": values["kernel"].contiguous(),
                                   "bias": values["bias"]})
            layers += [layer, nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.mean, self.deviation = (torch.tensor(value).reshape(1, 3, 1, 1)
                                     for value in (MEAN, DEVIATION))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers((images / 127.5 - 1 - self.mean) / self.deviation).mean(dim=(2, 3))


class InBfloat16:
    """An extractor under autocast: how much faster, and how far off?"""

    def __init__(self, extractor: Extractor) -> None:
        self.extractor, self.batch, self.name = extractor, extractor.batch, extractor.name

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        with torch.autocast("cpu", torch.bfloat16):
            return self.extractor(images)


class Clock:
    """Seconds spent in parts."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.parts[part] = self.parts.get(part, 0) + time.perf_counter() - start

    def __str__(self) -> str:
        return ", ".join(f"{part} {seconds:.2f} s" for part, seconds in self.parts.items())


def image_sets(n: int, path: str | None) -> list[Tensor]:
    """Two sets of uint8 images (n, 3, 32, 32): from a file's `images` (N, 32, 32, 3), or smooth."""
    generator = np.random.default_rng(0)
    if path:
        images = np.load(path, allow_pickle=False)["images"]
        rows = generator.choice(len(images), 2 * n, replace=2 * n > len(images))
        return list(torch.from_numpy(images[rows]).permute(0, 3, 1, 2).contiguous().chunk(2))
    coarse = torch.from_numpy(generator.random((2 * n, 3, 5, 5), dtype=np.float32))
    smooth = F.interpolate(coarse, (SIDE, SIDE), mode="bicubic").clamp(0, 1)
    return list((smooth * 255).to(torch.uint8).chunk(2))


def write_folder(folder: Path, images: Tensor) -> str:
    folder.mkdir()
    for index, picture in enumerate(images.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(picture).save(folder / f"{index:06d}.png")
    return str(folder)


def clean_fid(folders: list[str], side: int, clock: Clock) -> tuple[float, float]:
    """Both distances by clean-fid."""
    import_torchvision()
    from cleanfid import fid
    from cleanfid.resize import make_resizer

    network = PlainVGG16().eval()
    resize = make_resizer("PIL", False, "bicubic", (side, side))
    with clock("features"):
        features = [fid.get_folder_features(
            folder, network, num_workers=os.cpu_count(), batch_size=128, device=CPU,
            custom_fn_resize=resize, verbose=False) for folder in folders]
    with clock("Fréchet"):
        frechet = fid.fid_from_feats(*features)
    with clock("kernel"):
        kernel = fid.kernel_distance(*features)
    return float(frechet), float(kernel)


def reference(extractor: Extractor | InBfloat16, real: Tensor, clock: Clock) -> Reference:
    with clock("features"):
        features = extract(extractor, real).features
    return reference_of(features, "real")


def ours(
    extractor: Extractor | InBfloat16, made: Tensor, real: Reference, clock: Clock
) -> tuple[float, float]:
    """Both distances by our own path."""
    assert real.features is not None
    with clock("features"):
        features = extract(extractor, made).features
    with clock("Fréchet"):
        frechet = frechet_distance(fit_gaussian(features), real.gaussian, real.root)
    with clock("kernel"):
        kernel = discrepancy(polynomial, features, real.features, real.similarity,
                             resampling(len(features), 0, 0))
    return frechet, kernel.value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name, default in (("images", 10_000), ("resolution", 32), ("rounds", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--npz")
    parser.add_argument("--bf16", action="store_true", help="also what bfloat16 would do")
    arguments = parser.parse_args()
    made, real = image_sets(arguments.images, arguments.npz)
    extractor = build_extractor(VGG16Config(kind="vgg16", resolution=arguments.resolution), {}, CPU)
    known = reference(extractor, real, Clock())
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        folders = [write_folder(Path(folder) / name, images)
                   for name, images in (("made", made), ("real", real))]

        def timed(name: str, measure: Callable[[Clock], tuple[float, float]]) -> None:
            clock = Clock()
            found[name] = (measure(clock), clock)

        candidates = {
            "clean-fid": lambda clock: clean_fid(folders, max(SIDE, arguments.resolution), clock),
            "ours": lambda clock: ours(extractor, made, reference(extractor, real, clock), clock),
            "ours, features of the data cached": lambda clock: ours(extractor, made, known, clock),
        }
        if arguments.bf16:
            candidates["ours in bfloat16, which is not used"] = lambda clock: ours(
                InBfloat16(extractor), made,
                reference(InBfloat16(extractor), real, clock), clock)
        seconds = rounds({name: lambda name=name, measure=measure: timed(name, measure)
                          for name, measure in candidates.items()}, arguments.rounds)
    for name, ((frechet, kernel), clock) in found.items():
        print(f"{name}: {min(seconds[name]):.1f} s ({clock}); Fréchet {frechet:.6g}, "
              f"kernel {kernel:.4g}; {ratio(seconds['clean-fid'], seconds[name])}")


if __name__ == "__main__":
    main()
