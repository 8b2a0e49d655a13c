"""What the metrics make of real images that are damaged more and more.

    python -m benchmarks.corruption [--samples 600]

Two disjoint halves of scikit-learn's digits: a reference, and images that are blurred, covered with
noise, lose gray levels, lose classes, or are copies of fewer and fewer. At level 0 they are as they
were. Measured are VGG16's features and the raw pixels. Each set has the same number of images, so
that figures of one column can be compared.
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from kdm_core.datasets.base import LabelledImages
from kdm_core.datasets.digits import read_digits
from kdm_core.metrics.compare import compare_features, reference_of
from kdm_core.metrics.estimate import Estimate, resampling
from kdm_core.metrics.extractors import VGG16Config, build_extractor
from kdm_core.metrics.features import Features, extract

Images = NDArray[np.uint8]
COLUMNS = {"fd": 3, "kd": 4, "precision": 3, "recall": 3, "density": 3, "coverage": 3}


def blurred(images: Images, sigma: float) -> Images:
    """Gaussian blur, `sigma` in pixels."""
    from scipy.ndimage import gaussian_filter

    return rounded(gaussian_filter(images.astype(np.float64), sigma, axes=(2, 3)))


def noisy(images: Images, deviation: float, seed: int = 0) -> Images:
    """Independent Gaussian noise, `deviation` in gray levels of 255."""
    noise = np.random.default_rng(seed).standard_normal(images.shape)
    return rounded(images + deviation * noise)


def coarse(images: Images, levels: int) -> Images:
    """Intensities rounded to so many equally spaced levels."""
    step = 255 / (levels - 1)
    return rounded(np.round(images / step) * step)


def rounded(images: NDArray[np.floating]) -> Images:
    return images.round().clip(0, 255).astype(np.uint8)


def of_classes(pool: LabelledImages, classes: int, count: int) -> Images:
    """`count` images of the first so many classes, all of them alike often."""
    wanted = np.arange(count) % classes
    rows = [np.flatnonzero(pool.labels == label)[: (wanted == label).sum()]
            for label in range(classes)]
    return pool.images[np.concatenate(rows)]


def copies(images: Images, distinct: int) -> Images:
    """As many images, but only so many different ones."""
    return images[np.arange(len(images)) % distinct]


def split(data: LabelledImages, count: int, seed: int = 0) -> tuple[Images, LabelledImages]:
    """A reference of `count` images, and the others."""
    order = np.random.default_rng(seed).permutation(len(data.images))
    rest = order[count:]
    return data.images[order[:count]], LabelledImages(data.images[rest], data.labels[rest],
                                                      data.class_names)


def corruptions(pool: LabelledImages, count: int) -> dict[str, dict[str, Images]]:
    """Sets of `count` images: by what was done to them, by how much, least first."""
    images = of_classes(pool, 10, count)
    return {
        "blur, pixels": {f"{s:g}": blurred(images, s) for s in (0.0, 0.4, 0.7, 1.0, 1.5)},
        "noise, of 255": {f"{s:g}": noisy(images, s) for s in (0, 16, 32, 64, 128)},
        "gray levels": {f"{n}": coarse(images, n) for n in (17, 8, 4, 3, 2)},
        "classes left": {f"{n}": of_classes(pool, n, count) for n in (10, 9, 8, 7, 6)},
        "different images": {f"{n}": copies(images, n)
                             for n in (count, count // 2, count // 4, count // 8, count // 16)},
    }


def pixels(images: Images) -> Features:
    """Gray levels in [0, 1]; KID's kernel is meant for features of about that size."""
    return Features(images.reshape(len(images), -1).astype(np.float32) / 255, None)


def row(name: str, level: str, figures: dict[str, Estimate]) -> str:
    cells = []
    for column, digits in COLUMNS.items():
        low, high = figures[column].interval() or (np.nan, np.nan)
        cells.append(f"{figures[column].value:.{digits}f} ± {(high - low) / 2:.{digits}f}")
    return f"| {name} | {level} | {' | '.join(cells)} |"


def table(
    extractor: str, measure: Callable[[Images], Features], reference: Images,
    sets: dict[str, dict[str, Images]],
) -> None:
    known = reference_of(measure(reference).features, "digits")
    print(f"\n{extractor}: {known.gaussian.mean.size} dimensions, reference of {known.n}\n")
    print("| corruption | level | " + " | ".join(COLUMNS) + " |")
    print("|---" * (2 + len(COLUMNS)) + "|")
    for name, levels in sets.items():
        for level, images in levels.items():
            counts = resampling(len(images), 200, 0)
            found = compare_features(measure(images), known, counts, seed=0)
            print(row(name, level, found.estimates), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=600)
    count = parser.parse_args().samples
    reference, pool = split(read_digits(), count)
    sets = corruptions(pool, count)
    print(f"n = {count}; ± half of the 95 % interval")
    vgg = build_extractor(VGG16Config(kind="vgg16"), {}, torch.device("cpu"))
    table("VGG16", lambda images: extract(vgg, torch.from_numpy(images)), reference, sets)
    table("Raw pixels", pixels, reference, sets)


if __name__ == "__main__":
    main()
