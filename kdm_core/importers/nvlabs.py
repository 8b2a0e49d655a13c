"""Teachers from the checkpoints of EDM and EDM2 (NVlabs/edm, NVlabs/edm2)."""

from typing import Any, Literal

from pydantic import TypeAdapter

from kdm_core.importers.edm import read_edm
from kdm_core.importers.edm2 import read_edm2
from kdm_core.importers.files import Weights, fetch
from kdm_core.importers.samples import label_names, samples_like
from kdm_core.importers.weights import load_weights
from kdm_core.networks import AnyNetworkConfig
from kdm_core.samples import SampleSpec
from kdm_core.teachers import Denoiser, DenoiserConfig
from kdm_core.teachers.preconditioning import PreconditioningConfig


class EDMSource(Weights):
    """A checkpoint of EDM, a pickle of which nothing is executed.

    Attributes:
        key: which network of the file; `ema` is the averaged one.
        guide: the checkpoint of a weaker model, for autoguidance.
    """

    source: Literal["edm"]
    key: str = "ema"
    guide: Weights | None = None


class EDM2Source(EDMSource):
    """A checkpoint of EDM2 that makes images or latents; fields as of `EDMSource`."""

    source: Literal["edm2"]  # type: ignore[assignment]  # a narrower tag of the same kind


def import_edm(source: EDMSource, data: SampleSpec) -> Denoiser:
    """The denoiser in a checkpoint, with the names of the data's labels if there are as many.

    Raises:
        DataError: the file is missing, damaged, or holds something else.
    """
    path = fetch(source.file, source.sha256)
    content = path.read_bytes()
    preconditioning: dict[str, Any] = {"kind": "edm"}
    if isinstance(source, EDM2Source):
        found: Any = read_edm2(content, str(path), source.key)
    else:
        found = read_edm(content, str(path), source.key)
        preconditioning = {"kind": found.preconditioning, **found.constants}
    spec = samples_like(data, list(found.shape), label_names(found.num_classes, data),
                        latent=getattr(found, "latent", None), sigma_data=found.sigma_data)
    network: AnyNetworkConfig = found.network
    parsed: PreconditioningConfig = TypeAdapter(PreconditioningConfig).validate_python(
        preconditioning)
    config = DenoiserConfig(kind="denoiser", network=network, preconditioning=parsed)
    teacher = Denoiser(config, spec)
    teacher.label_dropout = found.label_dropout
    load_weights(teacher.network, found.tensors, str(path))
    return teacher.eval().requires_grad_(False)
