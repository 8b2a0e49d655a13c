"""What speaks against the pairs of a store: measured part by part, then decided as a whole."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kdm_core.errors import DataError
from kdm_core.metrics.neighbours import Nearest
from kdm_core.pairs.filtering.config import FilterConfig
from kdm_core.pairs.filtering.copies import Space
from kdm_core.pairs.filtering.rules import Rule, broken
from kdm_core.pairs.keep import MAX_REASONS, KeepMask
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import PairStore
from kdm_core.values import as_float

Measures = dict[str, NDArray[Any]]
"""Of n pairs: bool (n,) by the name of a reason, True where it speaks against a pair; and in each
space the nearest training samples, `distance_SPACE` (n,) float64 and `place_SPACE` (n,) int64."""


class Judge(NamedTuple):
    """What pairs are measured by.

    Attributes:
        config: what speaks against a pair.
        spaces: one for each entry of `config.copies`.
        rules: by their paths in `config.rules`.
        device: where to compute.
    """

    config: FilterConfig
    spaces: Sequence[Space]
    rules: Mapping[str, Rule]
    device: torch.device

    def measure(self, store: PairStore, rows: range) -> Measures:
        """Consecutive pairs, all held in memory.

        Raises:
            DataError: pairs are missing or damaged, or not finite, which is no reason here.
            KDMError: a rule or an extractor fails.
        """
        block = self.read(store, rows)
        samples = block["sample"]
        finite = are_finite([samples])
        measures: Measures = {}
        if self.config.not_finite:
            measures["not_finite"] = ~are_finite(
                [values for values in block.values() if values.dtype.kind == "f"])
        elif not finite.all():
            raise DataError(f"{store.location}: {np.count_nonzero(~finite)} samples of pairs "
                            f"{rows.start} to {rows.stop} are not finite; set it to true, so that "
                            "they are left out", field="not_finite")
        # They are left out already, and nothing else can be told of them.
        samples = np.where(finite.reshape(-1, *[1] * (samples.ndim - 1)), samples, 0)
        if self.config.saturated is not None:
            measures["saturated"] = saturation(samples) > self.config.saturated
        measures |= self.copies(samples, finite)
        return measures | self.broken_rules(samples, block["label"])

    def read(self, store: PairStore, rows: range) -> dict[str, NDArray[Any]]:
        """The arrays that are needed."""
        floats = [name for name, array in store.arrays.items()
                  if self.config.not_finite and array.dtype.kind == "f"]
        return store.read_arrays(rows, ["sample", "label", *floats])

    def copies(self, samples: NDArray[Any], finite: NDArray[np.bool_]) -> Measures:
        """The nearest training samples."""
        measures: Measures = {}
        for space in self.spaces:
            found, name = space.nearest(samples, self.device), space.config.space
            measures[f"distance_{name}"] = np.where(finite, found.distance, np.inf)
            measures[f"place_{name}"] = found.place
        return measures

    @torch.inference_mode()
    def broken_rules(self, samples: NDArray[Any], labels: NDArray[np.int64]) -> Measures:
        """Which of the user's rules are broken."""
        if not self.rules:
            return {}
        given, classes = as_float(samples).to(self.device), torch.from_numpy(labels)
        return {path: broken(path, rule, given, classes.to(self.device))
                for path, rule in self.rules.items()}

    def decide(self, store: PairStore, measures: Measures) -> KeepMask:
        """The mask, given the measures of all `judged` pairs.

        What the store's own mask leaves out, if it has one, stays left out.

        Raises:
            DataError: nothing is left to train on or to validate with, or there are more reasons
                than a mask has room for.
        """
        spec, rows = store.spec, judged(store.spec)
        against = dict(own_reasons(store))
        found = {name: measures[name] for name in self.config.reasons if name in measures}
        for space in self.spaces:
            distance = nearest_in(space, measures).distance
            found[space.config.reason] = distance <= space.limit(distance)
        for name in self.config.reasons:
            against[name] = against[name] | found[name] if name in against else found[name]
        if len(against) > MAX_REASONS:
            raise DataError(f"filter: {len(against)} reasons with those of {store.location} are "
                            f"more than the {MAX_REASONS} that a mask has room for; drop some")
        reasons = np.zeros(spec.count, np.uint16)
        for k, speaks in enumerate(against.values()):
            reasons[rows.start :] |= speaks.astype(np.uint16) << k
        mask = KeepMask(spec.fingerprint, list(against), reasons)
        require_some(spec, mask)
        return mask


def own_reasons(store: PairStore) -> Measures:
    """What the store's own mask says of the judged pairs, by the names of its reasons."""
    if store.mask is None:
        return {}
    reasons = store.mask.reasons[judged(store.spec).start :]
    return {name: (reasons >> k & 1).astype(bool) for k, name in enumerate(store.mask.names)}


def require_some(spec: StoreSpec, mask: KeepMask) -> None:
    """Make sure that a mask leaves something.

    Raises:
        DataError: nothing is left to train on, or to validate with.
    """
    for split in ("validation", "train"):
        own = spec.split_range(split)
        if len(own) and not mask.keep[own.start : own.stop].any():
            raise DataError(f"filter: no {split} pair is left of {len(own):,}: {mask.counts()}; "
                            "loosen what leaves out most")


def nearest_in(space: Space, measures: Measures) -> Nearest:
    """The nearest training samples in a space, (n,)."""
    name = space.config.space
    return Nearest(measures[f"distance_{name}"], measures[f"place_{name}"])


def judged(spec: StoreSpec) -> range:
    """The rows of the pairs that can be left out: all but test pairs, the yardstick."""
    return range(spec.split_range("test").stop, spec.count)


def are_finite(arrays: Sequence[NDArray[Any]]) -> NDArray[np.bool_]:
    """Of arrays (n, …) of the same pairs: where all values are finite, (n,)."""
    found: NDArray[np.bool_] = np.logical_and.reduce([
        np.isfinite(values).reshape(len(values), -1).all(1) for values in arrays])
    return found


def saturation(images: NDArray[Any]) -> NDArray[np.float64]:
    """The share (n,) of the values of images (n, C, H, W), as at rest, that are at the ends of
    the range: 0 and 255, or −1 and 1 and beyond."""
    flat = images.reshape(len(images), -1)
    low, high = (0, 255) if images.dtype == np.uint8 else (-1, 1)
    share: NDArray[np.float64] = ((flat <= low) | (flat >= high)).mean(1)
    return share
