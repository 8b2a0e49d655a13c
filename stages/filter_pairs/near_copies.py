"""Near copies of training data in pictures and words, so that a reader can judge their limit."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kdm_core.datasets import open_dataset
from kdm_core.figures.copies import near_copies
from kdm_core.metrics.neighbours import Nearest
from kdm_core.pairs.filtering.copies import Space
from kdm_core.pairs.filtering.judging import Measures, judged, nearest_in
from kdm_core.pairs.store import PairStore
from kdm_core.values import as_float
from pipeline.reporting.records import FindingRecord
from pipeline.runtime import paths

IMAGES = 8
"""In a row."""


def picture(
    space: Space, measures: Measures, store: PairStore
) -> tuple[FindingRecord, Figure]:
    """What was found in one space."""
    hits = nearest_in(space, measures)
    images = store.spec.samples.kind == "image"
    name = space.config.words if images else "coordinates"
    limit, known = space.limit(hits.distance), hits.distance[np.isfinite(hits.distance)]
    found = choose(hits.distance, limit) if images else {}
    figure = near_copies({row: look_up(store, hits, places) for row, places in found.items()},
                         known, space.between, limit, name)
    numbers = {"n": len(hits.distance), "train_n": len(space.train), "limit": limit,
               "copies": int((hits.distance <= limit).sum()), "least": float(known.min()),
               "median": float(np.median(known)), "train_least": float(space.between.min()),
               "train_median": float(np.median(space.between)),
               "train_copies": float((space.between <= limit).mean())}
    rows = "Samples above the training images nearest to them, and how " if images else "How "
    return FindingRecord(
        name=space.config.reason, title=f"Near copies in {name}",
        alt=f"{rows}the distances in {name} of samples and of training data to the nearest "
            "training sample are distributed.",
        caption=caption(space, numbers, name, images), numbers=numbers), figure


def choose(distance: NDArray[np.float64], limit: float) -> dict[str, NDArray[np.int64]]:
    """The places of samples to show: the nearest, and those at both sides of the limit."""
    order = distance.argsort(kind="stable")
    order = order[np.isfinite(distance[order])]
    copies = int((distance <= limit).sum())
    rows = {"nearest": order[: min(IMAGES, copies)],
            "last out": order[max(IMAGES, copies - IMAGES) : copies],
            "first kept": order[copies : copies + IMAGES]}
    return {name: places for name, places in rows.items() if len(places)}


def look_up(store: PairStore, hits: Nearest, places: NDArray[np.int64]) -> tuple[
        NDArray[np.float32], NDArray[np.float32]]:
    """Samples at some places among the judged pairs, and the training samples nearest to them."""
    dataset, _ = open_dataset(paths.DATASET)
    rows = judged(store.spec).start + places
    samples = np.concatenate([store.read_arrays(range(row, row + 1), ["sample"])["sample"]
                              for row in rows.tolist()])
    return (as_float(samples).numpy(),
            as_float(dataset.train_samples[hits.place[places]]).numpy())


def caption(space: Space, numbers: dict[str, float | int], name: str, images: bool) -> str:
    """What to look at, and what the numbers say."""
    config = space.config
    rule = (f"at most {config.threshold:g} times as far from a training sample as training samples "
            "are from the nearest other one in the median" if config.threshold is not None else
            f"the {100 * (config.quantile or 0):g} % that are nearest to a training sample")
    look = ("Samples of the pairs, each above the training image nearest to it: the nearest, the "
            "last that are left out and the first that are kept, as far as this reason goes. Where "
            "the last ones left out only look alike, the limit is too high; where the first kept "
            "ones look the same, it is too low. " if images else "")
    return (f"{look}Near copies in {name} are {rule}: at a distance of {numbers['limit']:.3g} or "
            f"less, {numbers['copies']:,} of {numbers['n']:,} samples and "
            f"{numbers['train_copies']:.1%} of the training data. The median distance is "
            f"{numbers['median']:.3g} for samples and {numbers['train_median']:.3g} for training "
            f"data, the least {numbers['least']:.3g} and {numbers['train_least']:.3g}.")
