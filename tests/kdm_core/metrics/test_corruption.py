"""Metrics move the right way when real images are damaged more and more.

Features are a small random layer over scikit-learn's digits; benchmarks/corruption.py shows the
same in VGG16's features.
"""

import numpy as np
import pytest

from benchmarks.corruption import Images, blurred, copies, noisy, of_classes, split
from kdm_core.datasets.digits import read_digits
from kdm_core.metrics.compare import compare_features, reference_of
from kdm_core.metrics.features import Features

COUNT = 600
REFERENCE, POOL = split(read_digits(), COUNT)
CLEAN = of_classes(POOL, 10, COUNT)
WORSE: dict[str, list[Images]] = {
    "blur": [CLEAN, blurred(CLEAN, 0.7), blurred(CLEAN, 1.0), blurred(CLEAN, 1.5)],
    "noise": [CLEAN, noisy(CLEAN, 32), noisy(CLEAN, 64), noisy(CLEAN, 128)],
    "classes left": [of_classes(POOL, n, COUNT) for n in (10, 9, 8, 7)],
    "different images": [copies(CLEAN, COUNT // n) for n in (1, 2, 4, 8)],
}


def features(images: Images) -> np.ndarray:
    """A random layer of 32 units, (n, 32)."""
    weights = np.random.default_rng(0).standard_normal((64, 32)) / 8
    found: np.ndarray = np.maximum(images.reshape(-1, 64) / 128 @ weights, 0).astype(np.float32)
    return found


@pytest.mark.parametrize("damage, falling", [
    # In features as shallow as these, blurred images lie in the midst of sharp ones.
    ("blur", ["recall", "coverage"]),
    ("noise", ["precision", "density", "coverage"]),
    # What is left is as good as before.
    ("classes left", ["recall", "coverage"]),
    ("different images", ["recall", "coverage"]),
])
def test_metrics_are_monotone_under_growing_corruption(damage: str, falling: list[str]) -> None:
    reference, counts = reference_of(features(REFERENCE), "digits"), np.empty((0, COUNT), np.int32)
    found = [compare_features(Features(features(images), None), reference, counts, 0).estimates
             for images in WORSE[damage]]

    def steps(name: str) -> np.ndarray:
        return np.diff([figures[name].value for figures in found])

    for name in ("fd", "fd_infinity", "kd"):
        assert (steps(name) > 0).all(), name
    for name in falling:
        # Recall reaches zero before the worst level does.
        assert (steps(name) <= 0).all() and steps(name)[0] < -0.02, name
    if damage == "different images":
        assert np.abs(steps("precision")).max() < 0.1
