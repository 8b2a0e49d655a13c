"""Features of sets of images: computed in batches, once for each set and extractor."""

import hashlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdm_core.errors import DataError, DivergedError, KDMError
from kdm_core.serialization import fingerprint, read_tensors, write_tensors

METRICS = ("fd", "fd_infinity", "kd", "is", "precision", "recall", "density", "coverage")
"""What sets of features are compared by: Fréchet distance, kernel distance, score, …"""


class Features(NamedTuple):
    """What an extractor says of a set: features (n, d) and, if it classifies, probabilities (n, k).
    """

    features: NDArray[np.float32]
    probabilities: NDArray[np.float32] | None

    def first(self, n: int) -> "Features":
        """Those of the first n images."""
        known = self.probabilities
        return Features(self.features[:n], None if known is None else known[:n])


class Extractor(Protocol):
    """Turns images into features.

    Attributes:
        name: part of the names of metrics.
        text: one sentence that says what it is.
        fingerprint: hash of its weights and of all else that changes the features.
        dim: of a feature vector.
        batch: how many images a call suit it.
        metric_names: how each of `METRICS` is called in its features.
    """

    name: str
    text: str
    fingerprint: str
    dim: int
    batch: int
    metric_names: Mapping[str, str]

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 images (B, C, H, W), C 1 or 3 → float32 features (B, dim) and probabilities (B, k).

        Raises:
            KDMError: the extractor is for images of other shapes.
        """


class Compute(Protocol):
    """Features of a set, as `extract` computes them."""

    def __call__(
        self, extractor: Extractor, images: Tensor, *, on_images: Callable[[int], None]
    ) -> Features: ...


def named_after(name: str) -> dict[str, str]:
    """Names of metrics in the features of an extractor: fd_NAME, kd_NAME, …"""
    return {metric: f"{metric}_{name}" for metric in METRICS}


@torch.inference_mode()
def extract(
    extractor: Extractor, images: Tensor, batch: int | None = None,
    on_images: Callable[[int], None] = lambda images: None,
) -> Features:
    """Features of uint8 images (n, C, H, W), `batch` at a time.

    Args:
        extractor: what computes them.
        images: the set.
        batch: images a call; by default what suits the extractor.
        on_images: told after each batch how many images it had.

    Raises:
        KDMError: the set is empty, or is none of images that the extractor takes.
        DivergedError: a feature is not finite.
    """
    check_images(images)
    features, probabilities = [], []
    for chunk in torch.split(images, batch or extractor.batch):
        values, classes = extractor(chunk)
        features.append(values.float().cpu().numpy())
        if classes is not None:
            probabilities.append(classes.float().cpu().numpy())
        on_images(len(chunk))
    found = Features(np.concatenate(features),
                     np.concatenate(probabilities) if probabilities else None)
    if not np.isfinite(found.features).all():
        raise DivergedError(f"features of {extractor.name} are not finite: its weights are "
                            "damaged, or the device's precision does not suffice")
    return found


def check_images(images: Tensor) -> None:
    """Make sure that a tensor is a set of images as everybody would save them.

    Raises:
        KDMError: it is not.
    """
    if images.ndim != 4 or images.dtype != torch.uint8 or images.shape[1] not in (1, 3):
        raise KDMError("features are those of uint8 images (n, C, H, W) with 1 or 3 channels, "
                       f"found {images.dtype} of shape {tuple(images.shape)}")
    if not images.numel():
        raise KDMError(f"a set of images of shape {tuple(images.shape)} is empty: there is nothing "
                       "to compare")


class FeatureCache:
    """Features by the content of the images and the extractor's fingerprint, in a folder.

    A set that several students share, their teacher's or the real one, is therefore computed once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(
        self, extractor: Extractor, images: Tensor,
        on_images: Callable[[int], None] = lambda images: None,
        compute: Compute | None = None,
    ) -> Features:
        """`extract`, or what it returned before, of which `on_images` is not told.

        A damaged file is computed again, with a warning.

        Args:
            compute: does what `extract` does, by other means.

        Raises: as `extract`; DataError: the folder cannot be written to.
        """
        check_images(images)
        key = content_key(extractor, images)
        path = self.folder / f"{extractor.name}-{key[:24]}.safetensors"
        if path.exists():
            try:
                found = read_features(path, key)
            except DataError:
                warnings.warn(f"{path} is damaged: its features are computed again", stacklevel=2)
            else:
                return found
        found = (compute or extract)(extractor, images, on_images=on_images)
        write_features(path, key, found)
        return found


def content_key(extractor: Extractor, images: Tensor) -> str:
    """SHA-256 over an extractor's fingerprint and the shape and values of images."""
    digest = hashlib.sha256(f"{extractor.fingerprint}\n{tuple(images.shape)}\n".encode())
    digest.update(images.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def write_features(path: Path, key: str, features: Features) -> None:
    """Write features with a checksum, all at once."""
    tensors = {name: torch.from_numpy(values) for name, values in features._asdict().items()
               if values is not None}
    write_tensors(path, tensors, {"fingerprint": fingerprint({"key": key}, tensors)})


def read_features(path: Path, key: str) -> Features:
    """Read what `write_features` wrote.

    Raises:
        DataError: the file is damaged, or has the features of something else.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("fingerprint") != fingerprint({"key": key}, tensors):
        raise DataError(f"{path} does not hold what was written to it: delete it")
    probabilities = tensors.get("probabilities")
    return Features(tensors["features"].numpy(),
                    None if probabilities is None else probabilities.numpy())
