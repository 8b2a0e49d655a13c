"""Reading pairs for training and evaluation."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdm_core.pairs.store import PairStore, Split
from kdm_core.values import as_float


class Pairs(NamedTuple):
    """Noise (n, *shape) and samples (n, *shape), float32, and labels (n,) int64, on one device."""

    noise: Tensor
    samples: Tensor
    labels: Tensor


def read_split(store: PairStore, split: Split, device: torch.device) -> Pairs:
    """All pairs of a split on one device, so that training never waits for the disk."""
    block = store.read(store.spec.split_range(split))
    noise = torch.from_numpy(block.noise.astype(np.float32))
    return Pairs(noise.to(device), as_float(block.sample).to(device),
                 torch.from_numpy(block.label).to(device))
