"""The training samples that are nearest to others."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kdm_core.metrics.manifold import squared_distances
from kdm_core.values import as_float

CPU = torch.device("cpu")
CHUNK = 2048


class Nearest(NamedTuple):
    """Distances (n,), root mean squared over a sample's values, and places (n,)."""

    distance: NDArray[np.float64]
    place: NDArray[np.int64]


@torch.inference_mode()
def nearest(
    samples: NDArray[Any], train: NDArray[Any], itself: NDArray[np.int64] | None = None,
    device: torch.device = CPU, chunk: int = CHUNK,
) -> Nearest:
    """The nearest of `train` (m, *shape) to each of `samples` (n, *shape).

    Found in float32 on the device and measured in float64: a copy is at 0, and of neighbours whose
    squared distances differ by less than rounding (1e-6 of the samples' variance or so) either may
    be taken.

    Args:
        samples, train: uint8 images as at rest, which are compared in [-1, 1], or float32 values.
            `train` may be memory-mapped.
        itself: where the samples stand in `train`, (n,), so that none is its own neighbour.
        device: where to compare.
        chunk: samples of either kind that are compared at once.
    """
    given = as_float(samples).flatten(1).to(device)
    # Large squares cancel less around the mean.
    centre = given.mean(0)
    given -= centre
    best = torch.full((len(given),), torch.inf, device=device)
    place = torch.zeros(len(given), dtype=torch.int64, device=device)
    own = None if itself is None else torch.from_numpy(itself).to(device)
    for start in range(0, len(train), chunk):
        part = as_float(train[start : start + chunk]).flatten(1).to(device) - centre
        for first in range(0, len(given), chunk):
            rows = slice(first, first + chunk)
            squared = squared_distances(given[rows], part)
            if own is not None:
                squared[own[rows, None] - start == torch.arange(len(part), device=device)] = (
                    torch.inf)
            least, where = squared.min(1)
            closer = least < best[rows]
            place[rows] = torch.where(closer, start + where, place[rows])
            best[rows] = torch.where(closer, least, best[rows])
    places = place.cpu().numpy()
    return Nearest(measure(samples, train, places, chunk), places)


def measure(
    samples: NDArray[Any], train: NDArray[Any], places: NDArray[np.int64], chunk: int
) -> NDArray[np.float64]:
    """The distance (n,) of each sample to the training sample at its place, without rounding."""
    parts = [slice(first, first + chunk) for first in range(0, len(samples), chunk)]
    return np.concatenate([
        (as_float(samples[part]) - as_float(train[places[part]])).double().square().flatten(1)
        .mean(1).sqrt().numpy() for part in parts])
