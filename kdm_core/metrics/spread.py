"""How much samples differ within their class: what is lost when a model makes one sample of each.
"""

import torch
from torch import Tensor

from kdm_core.errors import MismatchError
from kdm_core.metrics.estimate import Counts, Estimate, mean_estimate


def within_class_variance(samples: Tensor, labels: Tensor, counts: Counts) -> Estimate:
    """The mean over all values of their variance around the mean of the class.

    Args:
        samples: (n, *shape), in whatever unit; the figure has its square.
        labels: (n,), -1 where there are no classes: then all are one.
        counts: (B, n) as from `resampling`.

    Raises:
        DataError, MismatchError: there are no samples, or not as many labels.
    """
    if len(samples) != len(labels):
        raise MismatchError(f"{len(samples)} samples have {len(labels)} labels: give each sample "
                            "the label that it was made for")
    values = samples.flatten(1).double()
    classes, place, sizes = torch.unique(labels, return_inverse=True, return_counts=True)
    sums = torch.zeros(len(classes), values.shape[1], dtype=values.dtype).index_add_(
        0, place, values)
    deviations = values - (sums / sizes[:, None])[place]
    return mean_estimate(deviations.square().mean(dim=1).numpy(), counts)
