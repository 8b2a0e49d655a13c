"""Teachers whose network is the user's own code."""

from typing import Annotated, Literal

import torch
from pydantic import Field, JsonValue, field_validator, model_validator

from kdm_core.config import Config
from kdm_core.errors import KDMError
from kdm_core.importers.files import fetch, unusable
from kdm_core.importers.state_dict import read_state_dict, with_sigma_data
from kdm_core.importers.weights import load_weights
from kdm_core.networks.module import (
    ImportPath,
    ModuleNetwork,
    ModuleNetworkConfig,
    trusting_code,
)
from kdm_core.samples import SampleSpec
from kdm_core.solvers.grids import GridConfig, KarrasGrid, SigmaGrid, TimestepGrid, UniformGrid
from kdm_core.teachers import Denoiser, DenoiserConfig, FlowMatching, FlowMatchingConfig, Teacher
from kdm_core.teachers.preconditioning import EDMPreconditioning, PreconditioningConfig


class ModuleDenoiser(Config):
    """The module is the network of a denoiser, or with preconditioning `none` the denoiser.

    Attributes:
        preconditioning, grid: as in `DenoiserConfig`.
    """

    kind: Literal["denoiser"]
    preconditioning: PreconditioningConfig = EDMPreconditioning()
    grid: Annotated[SigmaGrid | TimestepGrid, Field(discriminator="kind")] = KarrasGrid(
        kind="karras")


class ModuleFlow(Config):
    """The module is a velocity field on straight paths, from noise at 0 to samples at 1.

    Attributes:
        grid, normalised: as in `FlowMatchingConfig`.
    """

    kind: Literal["flow_matching"]
    grid: GridConfig = UniformGrid(kind="uniform")
    normalised: bool = False


class ModuleSource(Config):
    """A network made by `package.module:callable`, and what it is the network of.

    Attributes:
        factory, arguments: as in `ModuleNetworkConfig`.
        model: what is made of the module.
        trust_code: that you know what `factory` does, for it is imported and run.
        file, sha256: the module's state dict, as in `Weights`; None if the factory loads its own.
        key, prefix: where in the file, as in `StateDictSource`.
        sigma_data: standard deviation of the data it was trained on; None: as of the data set.
        label_dropout: share of the labels that it was not shown in training, for classifier-free
            guidance: 0 refuses it; None: nobody knows.
    """

    source: Literal["module"]
    factory: ImportPath
    arguments: dict[str, JsonValue] = {}
    model: Annotated[ModuleDenoiser | ModuleFlow, Field(discriminator="kind")]
    trust_code: bool = Field(False, validate_default=True)
    file: str | None = Field(None, min_length=1)
    sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$")
    key: str | None = Field(None, min_length=1)
    prefix: str = ""
    sigma_data: float | None = Field(None, gt=0)
    label_dropout: float | None = Field(None, ge=0, le=1)

    @field_validator("trust_code")
    @classmethod
    def _trusted(cls, trusted: bool) -> bool:
        if not trusted:
            raise ValueError("importing a module runs its code on this machine, with all that you "
                             "may do; if you know and trust it, use teacher.trust_code: true")
        return trusted

    @model_validator(mode="after")
    def _pinned(self) -> "ModuleSource":
        if self.file is not None and (problem := unusable(self.file, self.sha256)):
            raise ValueError(problem)
        return self


def import_module(source: ModuleSource, data: SampleSpec) -> Teacher:
    """The teacher around a user's module, for samples as of `data`.

    The module is called once, with zeros, so that what is wrong with it shows here.

    Raises:
        KDMError: the factory or the module fails, or makes something else.
        DataError: the file with the weights is missing or damaged.
        MismatchError: its tensors are not those of the module.
    """
    network = ModuleNetworkConfig(kind="module", factory=source.factory, arguments=source.arguments)
    spec = with_sigma_data(data, source.sigma_data)
    teacher: Denoiser | FlowMatching
    with trusting_code():
        if isinstance(source.model, ModuleDenoiser):
            teacher = Denoiser(DenoiserConfig(network=network, **dict(source.model)), spec)
        else:
            teacher = FlowMatching(FlowMatchingConfig(network=network, **dict(source.model)), spec)
    assert isinstance(teacher.network, ModuleNetwork)
    if source.file is not None:
        path = fetch(source.file, source.sha256)
        load_weights(teacher.network.module, read_state_dict(path, source.key, source.prefix),
                     str(path))
    teacher.label_dropout = source.label_dropout
    teacher.cpu().eval().requires_grad_(False)
    try_out(teacher, source.factory)
    return teacher


@torch.no_grad()
def try_out(teacher: Denoiser | FlowMatching, factory: str) -> None:
    """Call a teacher's module once, as the teacher will.

    Raises:
        KDMError: it fails.
    """
    labels = teacher.spec.told(torch.zeros(1, dtype=torch.int64))
    try:
        teacher.velocity(torch.zeros(1, *teacher.spec.shape), torch.tensor(0.5), labels)
    except KDMError:
        raise
    except Exception as error:  # the user's code can fail in any way
        raise KDMError(f"teacher.factory: the module of {factory} failed when called with x of "
                       f"shape {(1, *teacher.spec.shape)}, a time of shape (1,)"
                       f"{' and labels of shape (1,)' if labels is not None else ''} "
                       f"({type(error).__name__}: {error})") from error
