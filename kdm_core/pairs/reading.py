"""Reading pairs for training and evaluation."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdm_core.pairs.store import PairStore, Split
from kdm_core.values import as_float


class Pairs(NamedTuple):
    """The pairs of a split, on one device.

    Attributes:
        noise, samples: (n, *shape) float32.
        labels: (n,) int64.
        trajectory: (n, k, *shape) float16, states of unit variance between noise and sample,
            noisiest first; None where none were read.
        positions: (k,) float32, their positions from samples (0) to noise (1).
    """

    noise: Tensor
    samples: Tensor
    labels: Tensor
    trajectory: Tensor | None = None
    positions: Tensor | None = None


def read_split(
    store: PairStore, split: Split, device: torch.device, states: bool = False
) -> Pairs:
    """All pairs of a split on one device, so that training never waits for the disk.

    Args:
        states: also read the trajectory, if the store has one.
    """
    block = store.read(store.spec.split_range(split), states)
    noise = torch.from_numpy(block.noise.astype(np.float32))
    pairs = Pairs(noise.to(device), as_float(block.sample).to(device),
                  torch.from_numpy(block.label).to(device))
    if block.trajectory is None:
        return pairs
    return pairs._replace(
        trajectory=torch.from_numpy(block.trajectory).to(device),
        positions=torch.tensor([state.position for state in store.spec.states], device=device))
