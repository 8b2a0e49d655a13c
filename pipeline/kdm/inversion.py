"""`kdm sample STUDENT --invert FILE`: the noises from which given samples come."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from kdm_core.compute import Precision
from kdm_core.errors import DataError, KDMError

if TYPE_CHECKING:
    from torch import Tensor

    from kdm_core.students.base import Student

STEPS = 18


def invert_file(
    student: "Student", file: Path, out: Path, steps: int, batch: int, precision: Precision
) -> str:
    """Write `noise` (n, *shape), float32, and the `labels` of a file's samples as a .npz.

    Args:
        steps: of Heun's method, two evaluations each.

    Returns:
        How well one evaluation makes the samples again of these noises, in words.

    Raises:
        KDMError: the student has no inverse, or these are no samples or labels of it.
    """
    import numpy as np
    import torch

    from kdm_core.serialization import write_atomic
    from pipeline.runtime.progress import Progress

    if out.suffix != ".npz":
        raise KDMError(f"{out} is no .npz, which noises are written as", field="out")
    samples, labels = read_samples(student, file)
    device = next(student.parameters()).device
    noises, error = [], 0.0
    with Progress("invert", len(samples), "sample") as progress:
        for start in range(0, len(samples), batch):
            part = samples[start : start + batch].to(device)
            told = None if labels is None else labels[start : start + batch]
            noise = student.invert(part, told, steps, precision)
            again = student.generate(noise, told, precision)
            error += float((again - part).square().flatten(1).mean(1).sum())
            noises.append(noise.cpu())
            progress.update(len(part))
    found = torch.cat(noises)
    arrays = {"noise": found.numpy()} | ({} if labels is None else {"labels": labels.numpy()})
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_atomic(out, buffer.getvalue())
    return (f"{len(found)} noises of standard deviation {float(found.std()):.3g}; one evaluation "
            f"makes the samples of them again to {(error / len(found)) ** 0.5:.2g} (root mean "
            "square)")


def read_samples(student: "Student", file: Path) -> "tuple[Tensor, Tensor | None]":
    """Samples (n, *shape) as the student makes them, and labels (n,); None without classes."""
    import torch

    from kdm_core.classes import match_classes
    from kdm_core.datasets.arrays import LabelledArrays
    from kdm_core.datasets.channels import with_channels_first
    from kdm_core.values import as_float

    spec = student.spec
    arrays = LabelledArrays(file, others=("noise", "seed"))
    values = arrays.samples.whole()
    if spec.kind == "image" and values.dtype == "uint8" and values.shape[1:] != tuple(spec.shape):
        values = with_channels_first(values, "last")
    if values.shape[1:] != tuple(spec.shape) or values.dtype.kind not in "fu":
        raise DataError(f"{file}: {arrays.key} has samples of shape {values.shape[1:]} and type "
                        f"{values.dtype}, this student makes {tuple(spec.shape)}, uint8 or floats")
    if not spec.num_classes:
        return as_float(values), None
    if not arrays.label_names:
        raise DataError(f"{file} has no labels, of which this student takes one a sample: add an "
                        "array labels")
    order = match_classes(arrays.label_names, spec.label_names, "the student", str(file))
    return as_float(values), torch.tensor(order)[torch.from_numpy(arrays.labels)]
