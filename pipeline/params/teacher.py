"""The section `teacher`: one that is trained here, one in closed form, or one of others."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdm_core.config import Config
from kdm_core.importers import ForeignSource
from kdm_core.networks.get import GETConfig
from kdm_core.networks.module import ModuleNetworkConfig
from kdm_core.teachers import TrainableConfig
from kdm_core.teachers.augmentation import AugmentationConfig
from kdm_core.training.config import TrainingConfig


class WeakerTeacher(Config):
    """A second teacher, smaller or less trained, that autoguidance pushes away from.

    Attributes:
        model: what it is, with its network.
        training: how long, on what batches and how fast.
    """

    model: TrainableConfig
    training: TrainingConfig


class TrainedTeacher(Config):
    """A teacher that is trained here, on the data of the run.

    Attributes:
        model: what it is, with its network.
        training: how long, on what batches and how fast.
        label_dropout: share of the labels that it is not shown; classifier-free guidance needs
            some (0.1).
        augmentation: of the images; None for none.
        guide: the weaker teacher of autoguidance, trained on the same data.
    """

    source: Literal["train"]
    model: TrainableConfig
    training: TrainingConfig
    label_dropout: float = Field(0.0, ge=0, lt=1)
    augmentation: AugmentationConfig | None = None
    guide: WeakerTeacher | None = None

    def models(self) -> dict[str, TrainableConfig]:
        """What is trained, by its place in the file."""
        guide = {"teacher.guide.model": self.guide.model} if self.guide is not None else {}
        return {"teacher.model": self.model, **guide}

    @model_validator(mode="after")
    def _trainable(self) -> "TrainedTeacher":
        for name, model in self.models().items():
            if isinstance(model.network, ModuleNetworkConfig):
                raise ValueError(f"{name}.network.kind: a module of your own is imported with "
                                 "teacher.source: module")
            if isinstance(model.network, GETConfig):
                raise ValueError(f"{name}.network.kind: get takes no time, which teachers need; it "
                                 "is for students of the kind direct (denoiser.network)")
            kind = getattr(getattr(model, "preconditioning", None), "kind", "edm")
            if kind != "edm":
                raise ValueError(f"{name}.preconditioning.kind: {kind} is for models that are "
                                 "imported; use edm")
        return self


class ExactTeacher(Config):
    """A teacher in closed form, of the training data: for studies, and to check what is exact.

    Attributes:
        kind: the normal distribution of the data (of each class, if there are labels), or the
            data themselves.
    """

    source: Literal["exact"]
    kind: Literal["gaussian_mixture", "finite_data"]


class NoTeacher(Config):
    """No teacher is at hand: the pairs are all that is known of it."""

    source: Literal["none"]


SourceParams = Annotated[ForeignSource, Field(discriminator="source")]


TeacherParams = Annotated[TrainedTeacher | ExactTeacher | NoTeacher | ForeignSource,
                          Field(discriminator="source")]
