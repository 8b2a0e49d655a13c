"""What the adapters to networks of other packages share."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdm_core.errors import KDMError
from kdm_core.vision import import_torchvision


def import_diffusers_library() -> Any:
    """The package diffusers.

    Raises:
        KDMError: it is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise KDMError("teachers of diffusers need that package: "
                       f"pip install 'kdm-distill[diffusers]' ({error})") from error
    import_torchvision()  # which diffusers imports with its models
    return diffusers


def build_of_diffusers(name: str, arguments: Mapping[str, Any]) -> Any:
    """A network of diffusers' class `name`, with fresh weights.

    Raises:
        KDMError: the package is missing, or the arguments describe no such network.
    """
    kind = getattr(import_diffusers_library(), name)
    try:
        return kind(**arguments)
    except Exception as error:  # whatever the values make it fail with
        raise KDMError(f"network.arguments: diffusers builds no {name} of these: {error}"
                       ) from error


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
