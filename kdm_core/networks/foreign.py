"""What the adapters to networks of other packages share."""

import torch
from torch import Tensor

from kdm_core.errors import KDMError


def require_labels(labels: Tensor | None, num_classes: int) -> Tensor | None:
    """The labels for a network that has an embedding of its classes and nothing else.

    Returns:
        (B,) int64; None for a network without classes.

    Raises:
        KDMError: there are labels of −1, or none, where they are needed.
    """
    if not num_classes:
        return None
    # Its embedding would fail beyond repair on CUDA, so this is worth a look at every call.
    if labels is None or bool(torch.any(labels < 0)):
        raise KDMError("this teacher was trained with labels only and cannot do without them: "
                       "use no guidance of kind classifier_free")
    return labels
