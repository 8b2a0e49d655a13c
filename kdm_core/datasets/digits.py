"""The 8 x 8 scans of handwritten digits that come with scikit-learn.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, 1998 (its test set).
"""

from typing import Literal

import numpy as np
import torch

from kdm_core.datasets.base import LabelledImages, SplitConfig
from kdm_core.values import to_uint8


class DigitsConfig(SplitConfig):
    """1797 images (1, 8, 8) of the classes "0" … "9"."""

    source: Literal["digits"]


def read_digits() -> LabelledImages:
    """All scans, their grays 0 … 16 brought to 0 … 255."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    images = to_uint8(torch.from_numpy(scans.images[:, None]) / 8 - 1)
    return LabelledImages(images.numpy(), scans.target.astype(np.int64),
                          [str(name) for name in scans.target_names])
