"""Students as files for other runtimes, checked against the student that they were made of."""

import copy
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import kdm_core
from kdm_core.decoders.base import Autoencoder
from kdm_core.errors import KDMError, MismatchError
from kdm_core.noise import draw
from kdm_core.samples import SampleSpec
from kdm_core.students.base import Student

Format = Literal["torch-export", "onnx"]
OPSET = 18
TOLERANCE = 1e-4
"""Largest deviation of an exported file, of values of order one; float32 rounds to about 1e-6."""
BATCHES = (1, 2, 7)
ONNX_LIMIT = 2**31 - 2**20
METADATA = "metadata.json"


@dataclass(frozen=True)
class Exported:
    """An exported file and how it was checked.

    Attributes:
        path: the file.
        deviation: the largest absolute difference from the student's own samples.
        batches: the batch sizes of the check.
    """

    path: Path
    deviation: float
    batches: tuple[int, ...]


class Sampler(nn.Module):
    """What is exported: noise (B, *shape) and labels (B,) to samples, images cut to [-1, 1].

    With a decoder, latents' images.

    A file cannot refuse a label: the sample of one that is none is NaN, where the runtime does not
    fail on it before.
    """

    def __init__(self, student: Student, decoder: Autoencoder | None = None) -> None:
        super().__init__()
        self.student, self.decoder = student, decoder

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        spec = self.student.spec
        samples: Tensor = self.student(noise, labels)
        if labels is not None:
            none = (labels < 0) | (labels >= spec.num_classes)
            samples = samples.masked_fill(none.reshape(-1, *[1] * len(spec.shape)), nan)
        if self.decoder is not None:
            return self.decoder.decode(samples)
        return samples.clamp(-1, 1) if spec.bounded else samples


class WithHeads(TorchFunctionMode):
    """Gives attention of (B, N, C) the single head that it has: ONNX knows no other form."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention and args[0].ndim == 3:
            query, key, value = (part.unsqueeze(1) for part in args[:3])
            return func(query, key, value, *args[3:], **(kwargs or {})).squeeze(1)
        return func(*args, **(kwargs or {}))


def export_student(
    student: Student, path: Path, format: Format, fingerprint: str, decode: bool = False
) -> Exported:
    """Write a student as a file that maps `noise` (B, *shape) float32, and `labels` (B,) int64 of a
    class-conditional one, to `samples` (B, *shape) float32; B is free.

    One step, in float32. Images are cut to [-1, 1]. The file says which student it is of
    (`fingerprint`), the range of its values and its labels' names, in ONNX's metadata or
    metadata.json. It is put at its place when it has been run and gave the student's own samples.

    Args:
        student: on any device; it is left as it is.
        path: the file, which is replaced.
        format: `onnx` (opset 18), or `torch-export` for `torch.export.load`.
        fingerprint: of the student's folder.
        decode: let the file give the images (B, *picture) of a student's latents.

    Raises:
        KDMError: a package is missing, the student is too large for ONNX, or has no decoder.
        MismatchError: the exported file gives other samples.
    """
    decoder = copy.deepcopy(student.require_autoencoder()) if decode else None
    sampler = Sampler(copy.deepcopy(student), decoder).cpu().eval().requires_grad_(False)
    program = traced(sampler)
    metadata = describe(student.spec.as_picture if decode else student.spec, fingerprint)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder, quiet():
        file = Path(folder) / f"student{'.onnx' if format == 'onnx' else '.pt2'}"
        if format == "onnx":
            write_onnx(program, file, metadata)
            run = open_onnx(file)
        else:
            extra = {METADATA: json.dumps(metadata)}
            torch.export.save(program, file, extra_files=extra)
            run = torch.export.load(file).module()
        deviation = largest_deviation(sampler, run)
        if not deviation <= TOLERANCE:
            raise MismatchError(f"{path}: the exported student's samples differ from its own by "
                                f"{deviation:.2g}, more than {TOLERANCE:.0e}; nothing was written")
        file.replace(path)
    return Exported(path, deviation, BATCHES)


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters warn of their own deprecations and doubts; the check is what counts."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(level)


def inputs(student: Student, n: int) -> tuple[Tensor, ...]:
    """Noise, and labels of a class-conditional student, of the first samples of seed 0."""
    spec = student.spec
    noise, labels = draw(0, range(n), spec.sample_shape, "float32", spec.num_classes)
    both = torch.from_numpy(noise), torch.from_numpy(labels)
    return both if spec.num_classes else both[:1]


def traced(sampler: Sampler) -> torch.export.ExportedProgram:
    """The student's graph for batches of any size."""
    # Three samples: sizes of 0 and 1 would be taken for constants.
    example = inputs(sampler.student, 3)
    free = tuple({0: torch.export.Dim.DYNAMIC} for _ in example)
    with WithHeads(), torch.no_grad():
        return torch.export.export(sampler, example, dynamic_shapes=free)


def describe(spec: SampleSpec, fingerprint: str) -> dict[str, str]:
    """What a user of the file has to know, as strings; `spec` is of what it gives."""
    return {
        "fingerprint": fingerprint,
        "library": f"kdm-distill {kdm_core.__version__}",
        "kind": spec.kind,
        "noise": "independent normal values of mean 0 and variance 1",
        "value_range": "[-1, 1]" if spec.bounded else "unbounded",
        "label_names": json.dumps(spec.label_names),
    }


def write_onnx(
    program: torch.export.ExportedProgram, file: Path, metadata: dict[str, str]
) -> None:
    """Convert and write; raises KDMError as `export_student` does."""
    size = sum(value.nbytes for value in program.state_dict.values())
    if size > ONNX_LIMIT:
        raise KDMError(f"format: {size:,} bytes of weights do not go into an ONNX file, which ends "
                       "at 2 GB; use torch-export")
    require_onnx()
    names = [spec.arg.name for spec in program.graph_signature.input_specs
             if spec.kind == torch.export.graph_signature.InputKind.USER_INPUT]
    converted = torch.onnx.export(program, input_names=names, output_names=["samples"],
                                  opset_version=OPSET, verbose=False)
    assert converted is not None
    converted.model.metadata_props.update(metadata)
    converted.save(file, external_data=False)


def require_onnx() -> None:
    """Make sure that what ONNX needs is installed.

    Raises:
        KDMError: it is not.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise KDMError(f"format: onnx needs the package {error.name}: "
                       "pip install 'kdm-distill[export]'") from error


def open_onnx(file: Path) -> Callable[..., Tensor]:
    """A file as a function, in onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(*values: Tensor) -> Tensor:
        feed = {name: value.numpy() for name, value in zip(names, values, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    return run


@torch.inference_mode()
def largest_deviation(sampler: Sampler, run: Callable[..., Tensor]) -> float:
    """The largest difference between samples of several batch sizes.

    Infinite for other shapes, and no number where a sample is none.
    """
    deviations = []
    for n in BATCHES:
        given = inputs(sampler.student, n)
        expected, found = sampler(*given), run(*given)
        if found.shape != expected.shape or found.dtype != torch.float32:
            return float("inf")
        deviations.append((found - expected).abs().max())
    # Python's own maximum would pass over what is no number.
    return float(torch.stack(deviations).max())
