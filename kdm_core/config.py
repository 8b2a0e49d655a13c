"""What every configuration in this library has in common."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """An immutable, strictly typed description of something that can be built.

    Unknown keys and values of another type are errors: a typo must never fall back to a default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
