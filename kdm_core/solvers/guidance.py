"""How an ODE is guided; `kdm_core.teachers.guidance` does it."""

from typing import Literal

from pydantic import Field

from kdm_core.config import Config


class GuidanceConfig(Config):
    """A teacher is pushed away from a weaker one.

    Attributes:
        kind: the weaker teacher is the same one without its label (`classifier_free`, Ho and
            Salimans 2022, arXiv:2207.12598) or the teacher's guide (`autoguidance`, Karras et
            al. 2024, arXiv:2406.02507).
        scale: 1 is no guidance.
    """

    kind: Literal["classifier_free", "autoguidance"]
    scale: float = Field(ge=1)
