"""A student of the section `students`."""

from typing import Any

from pydantic import Field, model_validator

from kdm_core.config import Config
from kdm_core.students import KINDS, KDMConfig, StudentConfig, with_kind
from kdm_core.students.objective import LossConfig
from kdm_core.students.phases import NextPhase, Phase, phases
from kdm_core.training.config import TrainingConfig


class StudentParams(Config):
    """One student: architecture, objective, optimisation.

    Attributes:
        model: of which kind it is, with its networks.
        shuffle_buffer: pairs that are mixed at a time; twice as many are held in the host's memory,
            read in the background. At least a batch and a file (`pairs.shard`) less one pair; null,
            or as many as there are, mixes all pairs, which then lie on the device as stored.
        init: where the weights start: at the `teacher`'s as far as they fit; `random`; `auto`, at
            the teacher's where they fit and at random ones where not; or at those of a student of
            the same architecture, which is a folder or OWNER/NAME on the hub.
        losses, training: of the first phase. Of terms for which a kind of student has no use the
            weight is 0 where it is left out.
        then: further phases, each of which starts where the one before ended.
    """

    model: StudentConfig
    init: str = Field("auto", min_length=1)
    shuffle_buffer: int | None = Field(None, ge=1)
    losses: LossConfig = LossConfig()
    training: TrainingConfig
    then: list[NextPhase] = []

    @model_validator(mode="before")
    @classmethod
    def _of_kind(cls, content: Any) -> Any:
        """Fill in what follows from the kind of student, `kdm` where none is said."""
        if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
            return content
        model = with_kind(content["model"])
        content = {**content, "model": model}
        kind = KINDS.get(str(model["kind"]))
        if kind is not None and kind.unused:
            unused = dict.fromkeys(kind.unused, 0.0)
            content["losses"] = filled(content.get("losses", {}), unused)
            content["then"] = filled_phases(content.get("then", []), unused)
        return content

    @property
    def starts_at(self) -> str | None:
        """The student at whose weights this one starts; None for one that starts at no other's."""
        return None if self.init in ("auto", "random", "teacher") else self.init

    @property
    def phases(self) -> list[Phase]:
        """All of them, in order."""
        return phases(Phase(self.losses, self.training), self.then)

    def placed_losses(self) -> list[tuple[str, LossConfig]]:
        """The losses of all phases that have their own, with their place in a student's section."""
        return [("", self.losses), *((f"then.{number}.", phase.losses)
                                     for number, phase in enumerate(self.then) if phase.losses)]

    @model_validator(mode="after")
    def _consistent(self) -> "StudentParams":
        for where, losses in self.placed_losses():
            try:
                self.model.check(losses)
            except ValueError as error:
                raise ValueError(f"{where}{error}") from error
        if isinstance(self.model, KDMConfig) and self.model.encoders == "noise":
            raise ValueError("model.encoders: a student whose noise alone is encoded is plain "
                             "distillation, which is a kind of its own now: write model: {kind: "
                             "direct}, and leave encoder, decoder, latent and operator out")
        if (self.init == "teacher" and isinstance(self.model, KDMConfig)
                and not self.model.takes_time):
            raise ValueError("init: the teacher's network takes a time, and so has a student that "
                             "starts at its weights; set model.timed: true")
        return self


def filled(losses: Any, unused: dict[str, float]) -> Any:
    """Losses as a file has them, with those that it leaves out."""
    return {**unused, **losses} if isinstance(losses, dict) else losses


def filled_phases(phases: Any, unused: dict[str, float]) -> Any:
    """The same of further phases, those that have losses of their own."""
    if not isinstance(phases, list):
        return phases
    return [{**phase, "losses": filled(phase["losses"], unused)}
            if isinstance(phase, dict) and "losses" in phase else phase for phase in phases]
