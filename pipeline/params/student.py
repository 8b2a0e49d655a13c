"""A student of the section `students`."""


from pydantic import Field, model_validator

from kdm_core.config import Config
from kdm_core.students.model import StudentConfig
from kdm_core.students.objective import LossConfig, check_losses
from kdm_core.students.phases import NextPhase, Phase, phases
from kdm_core.training.config import TrainingConfig


class StudentParams(Config):
    """One student: architecture, objective, optimisation.

    Attributes:
        shuffle_buffer: pairs that are mixed at a time; twice as many are held in the host's memory,
            read in the background. At least a batch and a file (`pairs.shard`) less one pair; null,
            or as many as there are, mixes all pairs, which then lie on the device as stored.
        init: where the weights start: `random`, at the `teacher`'s as far as they fit, or at those
            of a student of the same architecture, which is a folder or OWNER/NAME on the hub.
        losses, training: of the first phase.
        then: further phases, each of which starts where the one before ended.
    """

    model: StudentConfig
    init: str = Field("random", min_length=1)
    shuffle_buffer: int | None = Field(None, ge=1)
    losses: LossConfig = LossConfig()
    training: TrainingConfig
    then: list[NextPhase] = []

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
                check_losses(losses, self.model)
            except ValueError as error:
                raise ValueError(f"{where}{error}") from error
        if self.init == "teacher" and not self.model.takes_time:
            raise ValueError("init: the teacher's network takes a time, and so has a student that "
                             "starts at its weights; set model.timed: true")
        return self
